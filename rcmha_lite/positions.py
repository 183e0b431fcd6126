"""Where a token is: absolute encodings, added to the embeddings, and relative ones, added to the scores."""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn


def sinusoids(positions: Shaped[Tensor, " n"], d: int, base: float = 10_000.0) -> Float[Tensor, "n d"]:
    """Half sines, half cosines of ``positions`` at d/2 angular frequencies ω_m = base^(−2m/d), in float64.

        [sin(p·ω_0) … sin(p·ω_{d/2−1}), cos(p·ω_0) … cos(p·ω_{d/2−1})]

    The angles are formed in float64: in float32 they are wrong by 4e-4 at p = 4096. Source: Vaswani et al. 2017,
    arXiv 1706.03762, in the layout of Dai et al. 2019, arXiv 1901.02860.
    """
    if d % 2:
        raise ValueError(f"{d} channels cannot hold pairs of a sine and a cosine: give an even number")
    if positions.device.type == "mps":  # has no float64
        positions = positions.cpu()
    frequencies = base ** (-torch.arange(0, d, 2, dtype=torch.float64, device=positions.device) / d)
    angles = positions.double()[:, None] * frequencies
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


class AbsolutePosition(nn.Module):
    """Adds a vector for each position p to the embedding there: ``sinusoids(p)``, or row p of a learned table."""

    def __init__(self, d_model: int, *, learned: bool = False, length: int = 0) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(length, d_model)) if learned else None

    def forward(
        self, x: Float[Tensor, "batch time d_model"], start: int = 0
    ) -> Float[Tensor, "batch time d_model"]:
        """x[t] + encoding(start + t); IndexError where a learned table has no such row."""
        stop = start + x.shape[1]
        if self.table is None:
            return x + sinusoids(torch.arange(start, stop, device=x.device), x.shape[2]).to(x)
        if stop > len(self.table):
            raise IndexError(
                f"position {stop - 1} lies outside a learned table of {len(self.table)} positions: "
                "give a shorter text, train with a longer context, or use relative positions"
            )
        return x + self.table[start:stop]


class RelativePosition(nn.Module):
    """The part that makes MHA into RMHA. Given queries and keys, it returns queries, keys and a score bias

    so that  query′·key′ + bias  is the score of query i and key j before the scale. Keys lie at 0 … keys − 1; the
    queries are the last of these positions. ``u`` (``content_bias``) is what every query asks for wherever it is.
    """

    def __init__(self, n_heads: int, d_head: int) -> None:
        super().__init__()
        self.content_bias = nn.Parameter(torch.zeros(n_heads, d_head))

    def forward(
        self, q: Float[Tensor, "batch heads query d_head"], k: Float[Tensor, "batch heads key d_head"]
    ) -> tuple[
        Float[Tensor, "batch heads query width"],
        Float[Tensor, "batch heads key width"],
        Float[Tensor, "batch heads query key"] | None,
    ]:
        raise NotImplementedError


class LearnedRelativePosition(RelativePosition):
    """A learned row for each distance δ = i − j, as in RCMHA's public code (arXiv 2308.03429):

        score(i, j) = (q_i + u)·k_j + q_i·R[δ] + S[δ],   δ = 0 … distances − 1

    The table holds the distances that causal attention can meet, segment + memory of them, and no more.
    """

    def __init__(self, n_heads: int, d_head: int, distances: int) -> None:
        super().__init__(n_heads, d_head)
        self.embedding = nn.Parameter(torch.zeros(distances, n_heads, d_head))
        self.bias = nn.Parameter(torch.zeros(distances, n_heads))

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        queries, keys = q.shape[2], k.shape[2]
        if keys > len(self.bias):
            raise IndexError(
                f"a key {keys - 1} positions back lies outside a table of {len(self.bias)} distances: "
                "give shorter segments or memory, or train with longer ones"
            )
        by_distance = torch.einsum("bhid,nhd->bhin", q, self.embedding[:keys]) + self.bias[:keys].T[:, None]
        return q + self.content_bias[:, None], k, distance_to_key(by_distance, queries)


def distance_to_key(
    by_distance: Float[Tensor, "batch heads query key"], queries: int
) -> Float[Tensor, "batch heads query key"]:
    """Turn columns of distances δ into columns of keys j = i − δ; what would be a later key holds δ = 0's value."""
    keys = by_distance.shape[-1]
    i = torch.arange(keys - queries, keys, device=by_distance.device)
    delta = (i[:, None] - torch.arange(keys, device=by_distance.device)).clamp(min=0)
    return by_distance.gather(-1, delta.expand_as(by_distance))


class SinusoidalRelativePosition(RelativePosition):
    """Transformer-XL's four terms (Dai et al. 2019, arXiv 1901.02860), r_δ the sinusoids of δ = i − j:

        score(i, j) = q_i·k_j + q_i·W r_δ + u·k_j + v·W r_δ = (q_i + u)·k_j + (q_i + v)·W r_δ

    computed without a shift and without any array of queries × distances. With a = Wᵀ(q_i + v) split into its sine
    half a_s and cosine half a_c, sin and cos of (i − j)ω separate by angle addition:

        (q_i + v)·W r_{i−j} = (a_s sin iω + a_c cos iω)·cos jω + (a_c sin iω − a_s cos iω)·sin jω = φ(i)·ψ(j)

    so the queries become [q_i + u, φ(i)], the keys [k_j, ψ(j)], and a plain dot product does the rest.
    """

    def __init__(self, n_heads: int, d_head: int, d_position: int) -> None:
        super().__init__(n_heads, d_head)
        self.position_bias = nn.Parameter(torch.zeros(n_heads, d_head))
        self.projection = nn.Parameter(torch.empty(n_heads * d_head, d_position))
        nn.init.normal_(self.projection, std=d_position**-0.5)
        sinusoids(torch.zeros(1), d_position)  # raises where d_position is odd

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, None]:
        (batch, heads, queries, d_head), keys = q.shape, k.shape[2]
        waves = sinusoids(torch.arange(keys, device=q.device), self.projection.shape[1]).to(q)
        sin_i, cos_i = waves[keys - queries :].chunk(2, dim=-1)
        w = self.projection.to(q.dtype).unflatten(0, (heads, d_head))
        a_sin, a_cos = ((q + self.position_bias[:, None].to(q.dtype)) @ w).chunk(2, dim=-1)
        phi = (a_cos * sin_i - a_sin * cos_i, a_sin * sin_i + a_cos * cos_i)
        q = torch.cat((q + self.content_bias[:, None].to(q.dtype), *phi), dim=-1)
        return q, torch.cat((k, waves.expand(batch, heads, -1, -1)), dim=-1), None
