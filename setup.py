"""Packaging: `tasks/` and `gin/` lie beside the package in a checkout, inside it when installed.

The lower bounds are the versions that CI installs and tests.
"""

from setuptools import find_packages, setup

setup(
    name="cot-flax",
    version="0.1.0",
    description="Teach small encoder-decoders to reason step by step, in JAX and Flax",
    long_description=open("README.md").read(),  # noqa: SIM115
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[*find_packages(include=["cot_flax", "cot_flax.*"]), "cot_flax.tasks", "cot_flax.gin"],
    package_dir={"cot_flax.tasks": "tasks", "cot_flax.gin": "gin"},
    package_data={
        "cot_flax.gin": ["**/*.gin"],
        "cot_flax.world": ["*.model"],
        "cot_flax.evaluation.report": ["*.jinja", "*.css"],
    },
    install_requires=[
        "flax>=0.12.8",
        "gin-config>=0.5.0",
        "jax>=0.10.2",
        "jinja2>=3.1.6",
        "matplotlib>=3.11.2",
        "numpy>=2.4.6",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "protobuf>=7.36.2",
        "rich>=15.0.0",
        "sentencepiece>=0.2.3",
        "seqio>=0.0.20",
        "tensorboardX>=2.6.5",
        "tensorflow>=2.21.0",
        "tensorflow-datasets>=4.9.10",
        "tensorflow-text>=2.21.1",
        "typer>=0.29.2",
    ],
    extras_require={
        "tpu": ["jax[tpu]>=0.10.2"],
        "gpu": ["jax[cuda13]>=0.10.2"],
        "dev": [
            "hypothesis>=6.170.15",
            "pytest>=9.2.0",
            "pytest-xdist>=3.8.0",
            "ruff>=0.17.6,<0.18",
        ],
        "bench": ["torch>=2.13.0", "transformers>=4.57"],
    },
    entry_points={"console_scripts": ["cot-flax = cot_flax.cli:main"]},
)
