"""Runs of several real processes, which speak over the loopback, against one process alone."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from support.buckets import free_port, serve_bucket

from cot_flax import run_folder
from cot_flax.errors import UserError
from cot_flax.training import hosts
from cot_flax.training.sharding import MeshConfig
from cot_flax.weights.opening import open_source

sys.path.insert(0, str(Path(__file__).parent))
import one_host
from one_host import Shards, train

UNLIKE = {"kind", "tokens_per_second", "input_wait"}


@pytest.fixture(scope="module", autouse=True)
def _compiled_once(tmp_path_factory):
    """A run that goes on takes its program from the one that stopped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        yield


def start(*command, devices, **environment):
    """Starts Python, with so many simulated devices."""
    count = f"--xla_force_host_platform_device_count={devices}"
    flags = {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {count}"}  # the last one counts
    return subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | flags | environment,
    )


def start_all(folder, count, **environment):
    """Starts `count` processes, which have four devices between them."""
    command = one_host.__file__, str(folder), f"127.0.0.1:{free_port()}", str(count)
    return [start(*command, str(i), devices=4 // count, **environment) for i in range(count)]


def finish(process):
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    return out, err


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    finish(start(one_host.__file__, str(folder), devices=4))
    return folder


@pytest.fixture(scope="module")
def bucket():
    """Serves gs://runs; gives the environment that leads there."""
    with serve_bucket() as environment:
        yield environment


def copy(bucket, folder):
    """Copies all that gs://runs holds into a folder."""
    listing = f"{bucket['STORAGE_EMULATOR_HOST']}/storage/v1/b/runs/o"
    with urllib.request.urlopen(listing) as answer:
        names = [item["name"] for item in json.load(answer)["items"]]
    for name in names:
        with urllib.request.urlopen(f"{listing}/{quote(name, safe='')}?alt=media") as answer:
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            if not name.endswith("/"):
                file.write_bytes(answer.read())


@pytest.fixture(scope="module")
def four(bucket, tmp_path_factory):
    """A run of four processes in a bucket: a copy of it, and what each of them printed."""
    folder = tmp_path_factory.mktemp("four")
    printed = [finish(process) for process in start_all("gs://runs/a/b", 4, **bucket)]
    copy(bucket, folder)
    return folder / "a" / "b", printed


def rows_of(folder):
    return rows((folder / run_folder.METRICS).read_text())


def rows(text):
    found = [row for row in map(json.loads, text.splitlines()) if row["kind"] == "train"]
    assert [row["step"] for row in found] == list(range(1, one_host.STEPS[-1] + 1))
    return [{k: v for k, v in row.items() if k not in UNLIKE} for row in found]


def test_four_processes_have_the_losses_of_one(alone, four):
    for one, other in zip(rows_of(alone), rows_of(four[0]), strict=True):
        assert {"loss", "kl", "gradient_norm", "token_accuracy"} < one.keys()
        assert other == pytest.approx(one, rel=1e-5, abs=1e-6)


def test_their_checkpoints_are_those_of_one(alone, four):
    one, other = (open_source(str(folder)) for folder in (alone, four[0]))
    assert other.place.endswith(f"/{one_host.STEPS[-1]}")
    assert one.tensors.keys() == other.tensors.keys()
    for name, tensor in one.tensors.items():
        every = (slice(None),) * len(tensor.shape)
        np.testing.assert_allclose(
            other.tensors[name].read(every), tensor.read(every), rtol=1e-4, atol=1e-6
        )


def test_a_process_reads_the_shards_of_its_devices_rows(four):
    """The mesh is 2 x 2: two processes hold the same rows."""
    for index, (out, _) in enumerate(four[1]):
        shards = [[0, 1], [2, 3]][index // 2]
        expected = [f"process {index} reads {shards} from row {n} on" for n in (0, 32)]
        assert re.findall("process .*", out) == expected


def test_the_first_process_speaks_for_all(four):
    _, (_, *others) = zip(*four[1], strict=True)
    assert "goes on after step 4" in four[1][0][1]
    assert not any("step" in err for err in others)


def test_one_process_goes_on_where_four_stopped(alone, four, tmp_path):
    for folder in (alone, four[0]):
        shutil.copytree(folder, tmp_path / folder.name)
    losses = []
    for folder in (alone, four[0]):
        train(tmp_path / folder.name, 9, MeshConfig(data=2), Shards())
        rows = run_folder.read_metrics(str(tmp_path / folder.name))
        losses.append([row["loss"] for row in rows if row["kind"] == "train"][-2:])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_data_in_other_shards_are_refused(alone, tmp_path):
    shutil.copytree(alone, tmp_path / "run")
    with pytest.raises(UserError, match=r"data in 2 shards.* expected 4, .* 7 batches; set DATA_S"):
        train(tmp_path / "run", 9, MeshConfig(data=2), Shards(shards=2))


READ = """
from cot_flax.files import path_at
from cot_flax.weights import native
from cot_flax.weights.opening import open_source
source = open_source("gs://runs/a/b")
print(len(list(path_at("gs://runs/a/b/tensorboard").iterdir())))
print(source.place, source.vocabulary, (source.folder / "spiece.model").read_bytes())
print(native.best("gs://runs/a/b/best/worse"))
print(source.tensors["encoder.encoder_norm.scale"].whole().tolist())
"""


def test_the_run_is_read_where_it_lies(four, bucket):
    out, _ = finish(start("-c", READ, devices=1, **bucket))
    boards, place, best, scale = out.splitlines()
    assert best == "gs://runs/a/b/checkpoints/2"  # beside the newest three, in all four processes
    assert boards == "2"  # of the start and of going on
    assert place == "gs://runs/a/b/checkpoints/7 numbers b'numbers'"
    expected = open_source(str(four[0])).tensors["encoder.encoder_norm.scale"].whole()
    np.testing.assert_array_equal(json.loads(scale), expected)


def test_a_process_that_fails_ends_at_once_and_says_why():
    first, second = start_all("fail", 2)
    began = time.monotonic()
    _, err = second.communicate(timeout=60)
    assert second.returncode == 1
    assert "OSError: a disk that only this process has" in err
    assert time.monotonic() - began < 40  # it does not wait for the first one, which waits for it
    first.kill()
    first.communicate()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("h:1", 2, None), "process_index None; expected all three; start every process with"),
        ((None, 2, 0), "coordinator_address None, .*all three"),
        (("host", 2, 0), "coordinator_address host, .*HOST:PORT"),
        (("h:1", 2, 2), "process_count 2, process_index 2; expected an index from 0, below"),
    ],
)
def test_half_an_address_is_refused(given, expected):
    with pytest.raises(UserError, match=expected), hosts.initialize_distributed(*given):
        pass


def test_a_first_process_that_does_not_come_is_one_line():
    with pytest.raises(
        UserError, match=r"no answer at 127.0.0.1:.* for 1 seconds; expected proces"
    ):
        hosts.initialize_distributed(f"127.0.0.1:{free_port()}", 2, 1, timeout=1).__enter__()


SLURM = {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_PROCID": "0"}
GKE = {"TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "a-0.svc,a-1.svc"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "16"}, True),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "16"}, False),
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "16"}, False),  # sbatch without srun
        (GKE, True),
        (GKE | {"TPU_WORKER_HOSTNAMES": "localhost"}, False),  # one host, and Colab
        (GKE | {"TPU_WORKER_HOSTNAMES": "a-0.svc", "MEGASCALE_NUM_SLICES": "2"}, True),
    ],
)
def test_what_the_environment_says(environment, expected):
    assert hosts._has_company(environment) is expected


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, True),
        ({"JAX_PLATFORMS": "tpu,cpu"}, True),
        ({"JAX_PLATFORMS": "cpu"}, False),
        (GKE | {"TPU_WORKER_HOSTNAMES": "localhost"}, False),
    ],
)
def test_on_a_cloud_tpu_jax_is_asked(environment, expected, monkeypatch):
    assert not hosts._may_have_company(environment)
    monkeypatch.setattr(hosts.glob, "glob", lambda pattern: [pattern] * ("accel" in pattern))
    assert hosts._may_have_company(environment) is expected


JOIN = """
import jax
from cot_flax.training import hosts
hosts._may_have_company = lambda environment: True
with hosts.initialize_distributed(None, None, None):
    print(jax.process_index(), jax.process_count(), jax.device_count())
"""


def test_a_tpu_of_one_host_is_alone():
    out, _ = finish(start("-c", JOIN, devices=2, TPU_SKIP_MDS_QUERY="1"))
    assert out.splitlines()[-1] == "0 1 2"


def test_hosts_that_jax_does_not_find_are_an_error_not_a_run_each():
    _, err = start("-c", JOIN, devices=2, **GKE).communicate(timeout=60)
    assert "UserError: got no run to join (coordinator_address should be defined.)" in err


def test_the_environment_of_slurm_is_enough():
    """Two tasks that srun would start."""
    step = SLURM | {"SLURM_STEP_NODELIST": "127.0.0.1", "JAX_COORDINATOR_PORT": str(free_port())}
    step |= {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2"}
    started = [
        start("-c", JOIN, devices=1, **step | {"SLURM_PROCID": i, "SLURM_LOCALID": i})
        for i in ("0", "1")
    ]
    assert [finish(task)[0].splitlines()[-1] for task in started] == ["0 2 2", "1 2 2"]
