"""What runs can be planned for: TPU slices, GPUs of one machine, this machine's CPU.

Sources, read in November 2026:
- TPUs: cloud.google.com/tpu/docs/ v5e, v5p, v6e (peaks, bandwidths, slice shapes). v5p slices are
  named after their cores, two a chip. Memory is what the compiler (libtpu 0.0.52) lets a
  program use, a little less than what is built in. The links are those of the pages' "bidirectional
  bandwidth a chip", over 4 ports (v5e, v6e) or 6 (v5p), and both directions.
- GPUs: NVIDIA's data sheets (dense rates, without sparsity; NVLink in one direction). Of the
  memory JAX takes three quarters; XLA_PYTHON_CLIENT_MEM_FRACTION=0.9 raises that.
"""

import dataclasses
import difflib
import os

from cot_flax.errors import UserError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device, as the roofline sees it.

    Attributes:
        kind: "tpu", "gpu" or "cpu".
        memory: bytes that a program may use.
        flops: bfloat16 multiplications and additions a second, at peak.
        bandwidth: bytes a second between the memory and the chip.
        interconnect: bytes a second that a chip sends along one axis of a mesh.
        float32_rate: the share of `flops` at which float32 matrices are multiplied by default: on
            TPUs in one bfloat16 pass, on GPUs as TF32.
    """

    kind: str
    memory: float
    flops: float
    bandwidth: float
    interconnect: float
    float32_rate: float = 1.0


@dataclasses.dataclass(frozen=True)
class Target:
    """Chips that work together.

    Attributes:
        topology: libtpu's name of a TPU slice, "v5e:4x4".
        accelerator: Google Cloud's name of it, "v5litepod-16".
    """

    name: str
    chip: Chip
    chips: int
    topology: str = ""
    accelerator: str = ""

    @property
    def where(self) -> str:
        return f"{self.chips} chips {self.topology}" if self.topology else f"{self.chips} device(s)"


TPUS = {
    # 197 TFLOP/s, 16 GB at 819 GB/s, 400 GB/s in both directions over 4 ports.
    "v5e": Chip("tpu", 15.75 * GIB, 197e12, 819e9, 2 * 50e9),
    # 459 TFLOP/s, 95 GiB at 2,765 GB/s, 1,200 GB/s in both directions over 6 ports.
    "v5p": Chip("tpu", 95.73 * GIB, 459e12, 2765e9, 2 * 100e9),
    # 918 TFLOP/s, 32 GB at 1,600 GB/s, 3,200 Gb/s in one direction over 4 ports.
    "v6e": Chip("tpu", 31.24 * GIB, 918e12, 1600e9, 2 * 100e9),
}
GPUS = {
    # A100 data sheet: 312 TFLOP/s (TF32 156), SXM 80 GB 2,039 GB/s, 40 GB 1,555 GB/s, NVLink 600.
    "a100-40": Chip("gpu", 0.75 * 40e9, 312e12, 1555e9, 300e9, 0.5),
    "a100-80": Chip("gpu", 0.75 * 80e9, 312e12, 2039e9, 300e9, 0.5),
    # H100 SXM data sheet: 989 TFLOP/s (TF32 495), 80 GB at 3.35 TB/s, NVLink 900.
    "h100": Chip("gpu", 0.75 * 80e9, 989e12, 3350e9, 450e9, 0.5),
    # H200 SXM data sheet: the H100 with 141 GB at 4.8 TB/s.
    "h200": Chip("gpu", 0.75 * 141e9, 989e12, 4800e9, 450e9, 0.5),
    # L4 data sheet: 121 TFLOP/s (TF32 60), 24 GB at 300 GB/s, PCIe 4 x16.
    "l4": Chip("gpu", 0.75 * 24e9, 121e12, 300e9, 32e9, 0.5),
}
FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
CUBES = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8"}
SLICES = {"v5e": (FLAT, 1), "v5p": (CUBES, 2), "v6e": (FLAT, 1)}
IN_A_MACHINE = (1, 2, 4, 8)


def host() -> Chip:
    """This machine: 8 float32 lanes of fused multiply-add twice a cycle at 2.5 GHz, every core."""
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Chip("cpu", float(memory), cores * 80e9, 20e9, 10e9)


def names() -> list[str]:
    return sorted(_targets())


def find(name: str) -> Target:
    """Returns a target by its name: v5e-16, v5p-64, v6e-256, h200, a100-80x8, cpu.

    Raises:
        UserError: there is none of that name.
    """
    known = _targets()
    wanted = name.lower().replace("v5litepod", "v5e")
    if wanted not in known:
        family = [n for n in known if n.partition("-")[0] == wanted.partition("-")[0]]
        near = family or difflib.get_close_matches(wanted, known, 4, 0.3) or sorted(known)
        raise UserError(
            f"target {name!r}", f"one such as {', '.join(near)}", "set --target to one of them"
        )
    return known[wanted]


def environment(target: Target) -> dict[str, str]:
    """What libtpu and JAX read when they start: to be set before either is imported.

    A plan takes no accelerator, so that it can run beside a training.
    """
    found = {"JAX_PLATFORMS": "cpu"}
    if target.accelerator:
        found |= {
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_ACCELERATOR_TYPE": target.accelerator,
            "TPU_WORKER_HOSTNAMES": "localhost",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        }
    return found


def _targets() -> dict[str, Target]:
    found = {"cpu": Target("cpu", host(), 1)}
    for family, (shapes, cores) in SLICES.items():
        for chips, shape in shapes.items():
            name, prefix = f"{family}-{chips * cores}", "v5litepod" if family == "v5e" else family
            found[name] = Target(
                name, TPUS[family], chips, f"{family}:{shape}", f"{prefix}-{chips * cores}"
            )
    for family, chip in GPUS.items():
        for count in IN_A_MACHINE:
            name = family if count == 1 else f"{family}x{count}"
            found[name] = Target(name, chip, count)
    return found
