"""Matrix products as the planner counts them; each family lists its own (`Student.products`)."""

from typing import NamedTuple


class Product(NamedTuple):
    """`copies` products of [rows, inner] by [inner, columns].

    Attributes:
        kind: "dense" (by a weight of a layer), "attention" (queries by keys, or what comes of them
            by values) or "head".
        split: what a mesh's model axis splits: "columns", "copies" (heads) or "inner", where its
            chips then sum their results.
        last: of its layer: full recomputation leaves it out, since nothing in the backward pass
            reads its result.
        fused: an attention whose weights [queries, keys] never reach the memory.
    """

    kind: str
    rows: int
    inner: int
    columns: int
    copies: int
    split: str
    last: bool = False
    fused: bool = False

    @property
    def flops(self) -> float:
        return 2.0 * self.rows * self.inner * self.columns * self.copies

    @property
    def results(self) -> int:
        """Numbers that it gives."""
        return self.rows * self.columns * self.copies

    @property
    def weights(self) -> int:
        """Parameters that it reads, where it is no attention."""
        return self.inner * self.columns * self.copies


def passes(product: Product, remat: str, *, adapters_only: bool) -> float:
    """How many times a training step does the work of a product.

    Forward, the gradient of either side, and what `remat` does again: "full" every layer but its
    last product, "minimal" the products of activations with activations.

    Args:
        adapters_only: LoRA: no gradient of a weight is formed.
    """
    gradients = 1 if adapters_only and product.kind != "attention" else 2
    again = {
        "full": product.kind != "head" and not product.last,
        "minimal": product.kind == "attention",
        "none": False,
    }[remat]
    return 1 + gradients + again
