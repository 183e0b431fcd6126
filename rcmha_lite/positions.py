"""Where a token is: absolute encodings, added to the embeddings, and relative ones, added to the scores."""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F


def sinusoids(positions: Shaped[Tensor, " n"], d: int, base: float = 10_000.0) -> Float[Tensor, "n d"]:
    """Half sines, half cosines of ``positions`` at d/2 angular frequencies ω_m = base^(−2m/d), in float64.

        [sin(p·ω_0) … sin(p·ω_{d/2−1}), cos(p·ω_0) … cos(p·ω_{d/2−1})]

    The angles are formed in float64: in float32 they are wrong by 2e-4 at p = 4096. ValueError for an odd d or none.
    Source: Vaswani et al. 2017, arXiv 1706.03762, in the layout of Dai et al. 2019, arXiv 1901.02860.
    """
    if d < 2 or d % 2:
        raise ValueError(f"{d} channels cannot hold pairs of a sine and a cosine: give an even number, 2 or more")
    if positions.device.type == "mps":  # has no float64
        positions = positions.cpu()
    frequencies = base ** (-torch.arange(0, d, 2, dtype=torch.float64, device=positions.device) / d)
    angles = positions.double()[:, None] * frequencies
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


class SinusoidTable:
    """``sinusoids`` of consecutive positions; for a stream, ``AHEAD`` of them are made at once and kept."""

    AHEAD = 512

    def __init__(self, d: int, base: float = 10_000.0) -> None:
        self.d, self.base = d, base
        self.kept, self.first = torch.empty(0, d), 0

    def rows(self, like: Float[Tensor, "*batch time width"], start: int) -> Float[Tensor, "time {self.d}"]:
        """Those of the positions of ``like``, the first of them at ``start``, in its precision and place."""
        time = like.shape[-2]
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or type(like) is not Tensor or time > self.AHEAD:
            return self._made(like, start, time)
        at = start - self.first
        if not 0 <= at <= len(self.kept) - time or self.kept.dtype != like.dtype or self.kept.device != like.device:
            self.kept, self.first, at = self._made(like, start, time + self.AHEAD), start, 0
        return self.kept[at : at + time]

    def _made(self, like: Tensor, start: int, time: int) -> Tensor:
        device = "cpu" if like.device.type == "mps" else like.device  # which has no float64
        return sinusoids(torch.arange(start, start + time, device=device), self.d, self.base).to(like)


class AbsolutePosition(nn.Module):
    """Adds a vector for each position p to the embedding there: ``sinusoids(p)``, or row p of a learned table.

    ValueError for sinusoids of an odd d_model.
    """

    def __init__(self, d_model: int, *, learned: bool = False, length: int = 0) -> None:
        super().__init__()
        sinusoids(torch.zeros(1), 2 if learned else d_model)  # raises where they would
        self.table = nn.Parameter(torch.zeros(length, d_model)) if learned else None
        self.waves = SinusoidTable(d_model)

    def forward(self, x: Float[Tensor, "batch time d_model"], start: int = 0) -> Float[Tensor, "batch time d_model"]:
        """x[t] + encoding(start + t); IndexError where a learned table has no such row."""
        stop = start + x.shape[1]
        if self.table is None:
            return x + self.waves.rows(x, start)
        if stop > len(self.table):
            raise IndexError(
                f"position {stop - 1} lies outside a learned table of {len(self.table)} positions: "
                "give a shorter text, train with a longer context, or use relative positions"
            )
        return x + self.table[start:stop]


class Position(nn.Module):
    """How scores come to know where query and key stand: what becomes of queries and keys, and what is added,

        score(i, j) = queries(q)_i · keys(k)_j + bias(q)_ij   before the scale 1/√d_head.

    ``start`` is the position of the first query or key given; only differences of positions count. Here nothing is
    changed; each encoding replaces what it needs.
    """

    common_channels = 0
    """Last channels of the keys that tell nothing but the position: a stream keeps them once."""
    both_signs = True
    """Whether keys may stand after the query, as where attention is not causal."""
    across = False
    """Whether the part has a meaning where queries and keys are of two sequences: a distance between these has none."""

    def __init__(self, n_heads: int, d_head: int) -> None:
        super().__init__()
        self.n_heads, self.d_head = n_heads, d_head

    def forward(
        self,
        q: Float[Tensor, "batch heads query d_head"],
        k: Float[Tensor, "batch kv_heads key d_head"],
        start: int = 0,
        past: int = 0,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Queries, keys and score bias for ``q``, the last positions of ``k``, whose first stands at ``start``.

        ``past`` keys more stand before ``k`` in a cache; the bias, ``[…, query, past + key]`` or None, counts them.
        """
        first = start + k.shape[2] - q.shape[2]
        return self.queries(q, first), self.keys(k, start), self.bias(q, past + k.shape[2])

    def queries(
        self, q: Float[Tensor, "batch heads query d_head"], start: int
    ) -> Float[Tensor, "batch heads query width"]:
        """q_i."""
        return q

    def keys(
        self, k: Float[Tensor, "batch kv_heads key d_head"], start: int
    ) -> Float[Tensor, "batch kv_heads key width"]:
        """k_j."""
        return k

    def bias(
        self, q: Float[Tensor, "batch heads query d_head"], keys: int
    ) -> Float[Tensor, "#batch heads query {keys}"] | None:
        """What is added to the scores of queries ``q``, the last of ``keys`` positions; None for nothing."""
        return None


class RelativePosition(Position):
    """Encodings that also give every head something that each of its queries asks for wherever it is: ``u``
    (``content_bias``) is added to the queries (Dai et al. 2019, arXiv 1901.02860)."""

    def __init__(self, n_heads: int, d_head: int) -> None:
        super().__init__(n_heads, d_head)
        self.content_bias = nn.Parameter(torch.zeros(n_heads, d_head))

    def queries(
        self, q: Float[Tensor, "batch heads query d_head"], start: int
    ) -> Float[Tensor, "batch heads query width"]:
        """q_i + u."""
        return q + self.content_bias[:, None].to(q.dtype)


class LearnedRelativePosition(RelativePosition):
    """A learned row for each distance δ = i − j, as in RCMHA's public code (arXiv 2308.03429):

        score(i, j) = (q_i + u)·k_j + q_i·R[δ] + S[δ],   δ = 0 … distances − 1

    The table holds the distances that causal attention can meet, segment + memory of them, and no more. Unless
    ``causal``, as many to keys after the query are added, δ = −1 … 1 − distances; as in Python, R[−1] is the last row.
    ValueError for a table without a row.
    """

    def __init__(self, n_heads: int, d_head: int, distances: int, *, causal: bool = True) -> None:
        super().__init__(n_heads, d_head)
        if distances < 1:
            raise ValueError(f"a table of {distances} distances holds not even the position itself: give 1 or more")
        rows = distances if causal else 2 * distances - 1
        self.both_signs = not causal
        self.embedding = nn.Parameter(torch.zeros(rows, n_heads, d_head))
        self.table_bias = nn.Parameter(torch.zeros(rows, n_heads))

    def bias(self, q: Tensor, keys: int) -> Tensor:
        """q_i·R[i − j] + S[i − j]; IndexError where a key lies further back than the table goes."""
        distances = len(self.table_bias) // 2 + 1 if self.both_signs else len(self.table_bias)
        if keys > distances:
            raise IndexError(
                f"a key {keys - 1} positions back lies outside a table of {distances} distances: "
                "give shorter segments or memory, or train with longer ones"
            )
        table, biases = self.embedding[:keys], self.table_bias[:keys]
        if self.both_signs:  # first those to the keys after the query, farthest first
            after = len(self.table_bias) - (q.shape[2] - 1)
            table, biases = torch.cat((self.embedding[after:], table)), torch.cat((self.table_bias[after:], biases))
        by_distance = torch.einsum("bhid,nhd->bhin", q, table) + biases.T[:, None]
        return shift(by_distance)[..., :keys] if self.both_signs else shift(by_distance)


class SinusoidalRelativePosition(RelativePosition):
    """Transformer-XL's four terms (Dai et al. 2019, arXiv 1901.02860), r_δ the sinusoids of δ = i − j:

        score(i, j) = q_i·k_j + q_i·W r_δ + u·k_j + v·W r_δ = (q_i + u)·k_j + (q_i + v)·W r_δ

    computed without a shift and without any array of queries × distances: by ``factorise``, the queries become
    [q_i + u, φ(i)], the keys [k_j, ψ(j)], and a plain dot product does the rest. ValueError for an odd d_position.
    """

    def __init__(self, n_heads: int, d_head: int, d_position: int) -> None:
        super().__init__(n_heads, d_head)
        sinusoids(torch.zeros(1), d_position)  # raises where they would
        self.position_bias = nn.Parameter(torch.zeros(n_heads, d_head))
        self.projection = nn.Parameter(torch.empty(n_heads * d_head, d_position))
        nn.init.normal_(self.projection, std=d_position**-0.5)
        self.table, self.common_channels = SinusoidTable(d_position), d_position

    def waves(self, like: Tensor, start: int) -> Float[Tensor, "time d_position"]:
        """Sinusoids of the positions of ``like``, the first of them at ``start``."""
        return self.table.rows(like, start)

    def queries(self, q: Tensor, start: int) -> Tensor:
        """[q_i + u, φ(i)], with φ of a_i = Wᵀ(q_i + v)."""
        w = self.projection.to(q.dtype).unflatten(0, self.position_bias.shape)
        a = (q + self.position_bias[:, None].to(q.dtype)) @ w
        return torch.cat((super().queries(q, start), factorise(a, self.waves(q, start))), dim=-1)

    def keys(self, k: Tensor, start: int) -> Tensor:
        """[k_j, ψ(j)]."""
        return torch.cat((k, self.waves(k, start).expand(*k.shape[:2], -1, -1)), dim=-1)


class RotaryPosition(Position):
    """RoPE (Su et al. 2021, arXiv 2104.09864): queries and keys are turned, pair by pair of channels, by position · ω_m.

        score(i, j) = (R_i q_i)·(R_j k_j) = q_i·R_{j − i} k_j,   ω_m = base^(−2m/d_head),  m = 0 … d_head/2 − 1

    A pair is channel m and channel m + d_head/2: (x, y) becomes (x cos pω − y sin pω, x sin pω + y cos pω). No
    parameters. ValueError for an odd d_head.
    """

    def __init__(self, n_heads: int, d_head: int, base: float = 10_000.0) -> None:
        super().__init__(n_heads, d_head)
        sinusoids(torch.zeros(1), d_head, base)  # raises where it would
        self.table = SinusoidTable(d_head, base)

    def queries(self, q: Tensor, start: int) -> Tensor:
        """R_i q_i."""
        sin, cos = self.table.rows(q, start).chunk(2, dim=-1)
        x, y = q.chunk(2, dim=-1)
        return torch.cat((x * cos - y * sin, x * sin + y * cos), dim=-1)

    def keys(self, k: Tensor, start: int) -> Tensor:
        """R_j k_j."""
        return self.queries(k, start)


class AlibiPosition(Position):
    """ALiBi (Press et al. 2022, arXiv 2108.12409): every head forgets at a fixed pace of its own,

        score(i, j) / √d_head = q_i·k_j / √d_head − m_h·(i − j),   or abs(i − j) unless ``causal``.

    The slopes m_h fall by the same factor from head to head, 2^(−8h/n_heads), h = 1 … n_heads, where n_heads is a power
    of 2. Elsewhere, as in the public code, they are those of the next lower power, and for the heads that are left
    every second one of the power above. No parameters. The bias is an array of heads × queries × keys, once for a batch.
    """

    def __init__(self, n_heads: int, d_head: int, *, causal: bool = True) -> None:
        super().__init__(n_heads, d_head)
        self.both_signs = not causal

    def bias(self, q: Tensor, keys: int) -> Tensor:
        """−m_h·(i − j)·√d_head: the module's scale takes the root away again. The same for the whole batch."""
        i = torch.arange(keys - q.shape[2], keys, device=q.device)
        distance = i[:, None] - torch.arange(keys, device=q.device)
        distance = distance.abs() if self.both_signs else distance
        here = None if q.device.type == "mps" else q.device  # Apple's GPUs have no float64
        slopes = self.d_head**0.5 * alibi_slopes(self.n_heads, here)
        slopes = slopes.to(q.device, torch.promote_types(q.dtype, torch.float32))
        return (-slopes[:, None, None] * distance).to(q.dtype)[None]


def alibi_slopes(n_heads: int, device: torch.device | None = None) -> Float[Tensor, " n_heads"]:
    """m_h of ``AlibiPosition``, in float64, made on the ``device``: a copy from the CPU would wait for it."""
    power = 2 ** (n_heads.bit_length() - 1)

    def geometric(n: int) -> Tensor:
        return 2.0 ** (-8 * torch.arange(1, n + 1, dtype=torch.float64, device=device) / n)

    return torch.cat((geometric(power), geometric(2 * power)[::2][: n_heads - power]))


# Scores by distance, a_i·r_{i − j}, three ways and none. Columns of r are sines, then cosines (``sinusoids``).


def scores_by_index(a: Float[Tensor, "*batch query d"], r: Float[Tensor, "key d"]) -> Float[Tensor, "*batch query key"]:
    """Straight from the formula: gather r_{i − j} for every pair, an array of queries × keys × d."""
    i = torch.arange(len(r) - a.shape[-2], len(r), device=a.device)
    delta = (i[:, None] - torch.arange(len(r), device=a.device)).clamp(min=0)
    return torch.einsum("...id,ijd->...ij", a, r[delta])


def shift_by_index(by_distance: Float[Tensor, "*batch query key"]) -> Float[Tensor, "*batch query key"]:
    """Columns of distances δ into columns of keys j = i − δ, one gather. What lies after the query is arbitrary."""
    queries, keys = by_distance.shape[-2:]
    i = torch.arange(keys - queries, keys, device=by_distance.device)
    delta = (i[:, None] - torch.arange(keys, device=by_distance.device)).clamp(min=0)
    return by_distance.gather(-1, delta.expand_as(by_distance))


def shift(by_distance: Float[Tensor, "*batch query key"]) -> Float[Tensor, "*batch query key"]:
    """``shift_by_index`` without an index, Transformer-XL's way: farthest distance first, one zero before each row,

    then the same numbers read in rows that are one shorter: each row slides one place further than the row above.
    """
    queries, keys = by_distance.shape[-2:]
    return F.pad(by_distance.flip(-1), (1, 0)).flatten(-2)[..., queries:].unflatten(-1, (queries, keys))


def factorise(a: Float[Tensor, "*batch query d"], waves: Float[Tensor, "query d"]) -> Float[Tensor, "*batch query d"]:
    """φ(i) with φ(i)·ψ(j) = a_i·r_{i − j}, where ψ(j) and ``waves`` are the sinusoids of j and of the queries' i.

    By angle addition, with a split into its sine half a_s and its cosine half a_c, for each frequency ω:

        a_s sin (i − j)ω + a_c cos (i − j)ω = (a_c sin iω − a_s cos iω)·sin jω + (a_s sin iω + a_c cos iω)·cos jω
    """
    (a_sin, a_cos), (sin_i, cos_i) = a.chunk(2, dim=-1), waves.chunk(2, dim=-1)
    return torch.cat((a_cos * sin_i - a_sin * cos_i, a_sin * sin_i + a_cos * cos_i), dim=-1)
