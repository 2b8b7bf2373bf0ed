"""Packaging: `tasks/` and `gin/` lie beside the package in a checkout, inside it when installed."""

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
        "cot_flax.evaluation": ["*.jinja", "*.css"],
    },
    install_requires=[
        "flax>=0.12.8",
        "gin-config>=0.5.0",
        "jax>=0.10.2",
        "jinja2>=3.1",
        "matplotlib>=3.10",
        "numpy>=2.0",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "protobuf>=5.0",
        "rich>=14.0",
        "sentencepiece>=0.2.1",
        "seqio>=0.0.20",
        "tensorboardX>=2.6.4",
        "tensorflow>=2.21.0",
        "tensorflow-datasets>=4.9.10",
        "tensorflow-text>=2.21.1",
        "typer>=0.20",
    ],
    extras_require={
        "tpu": ["jax[tpu]>=0.10.2"],
        "gpu": ["jax[cuda13]>=0.10.2"],
        "dev": ["hypothesis>=6.150", "pytest>=8.4", "pytest-xdist>=3.8", "ruff>=0.14"],
        "bench": ["torch>=2.13.0", "transformers>=4.57"],
    },
    entry_points={"console_scripts": ["cot-flax = cot_flax.cli:main"]},
)
