"""What each party learns, in words."""

from dataclasses import dataclass

from secure.smpc._query import Query
from secure.smpc.program import Activation, Attention, Linear, Normalise, Program, Rescale

#: Bits of a power of two between 2^−64 and 2^63, of a radius in halves up to 64, of a token's gain,
#: of how far padded keys are lowered, and of a number of fraction bits.
_MAGNITUDE, _HALVES, _GAIN, _PADDING, _WEIGHT = 7, 7, 5, 10, 6
ASSUMPTION = (
    "both parties and the dealer follow the protocol (semi-honest), the dealer colludes with "
    "neither, and AES-256 and the links' TLS hold"
)


@dataclass(frozen=True)
class Leakage:
    """What each party learns from one query.

    Attributes:
        client: What the client learns.
        server: What the server (the model's owner) learns.
        dealer: What the dealer learns.
        network: What someone on the wire learns.
        assumption: Under which assumption there's no more than that.
        outside: What nothing here hides or prevents.
    """

    client: tuple[str, ...]
    server: tuple[str, ...]
    dealer: tuple[str, ...]
    network: tuple[str, ...]
    assumption: str
    outside: tuple[str, ...]

    def __str__(self) -> str:
        lines = []
        for title in ("client", "server", "dealer", "network"):
            lines += [f"{title} learns:", *(f"  - {each}" for each in getattr(self, title))]
        lines += [f"assuming {self.assumption}", "outside this protection:"]
        return "\n".join([*lines, *(f"  - {each}" for each in self.outside)])


def range_bits(program: Program) -> int:
    """Bound what a program's public ranges tell of the weights, in bits.

    Every number in a program that isn't fixed by the architecture takes one of so many values;
    the logarithms of their counts are added up. Coefficients follow from a radius.
    """
    bits = _MAGNITUDE * (1 + sum(spec.limit > 0 for spec in program.inputs))
    norms = [op.parameters for op in program.operations if isinstance(op, Normalise)]
    norms += [program.length] if program.length is not None else []
    # Top, floor, the bits of the index and of the square; one gain a token.
    bits += sum(2 * _MAGNITUDE + 4 + 5 + _GAIN * len(p.gains) for p in norms)
    for op in program.operations:
        if isinstance(op, Activation):
            bits += _HALVES
        elif isinstance(op, Attention):
            # Squarings and quarters of the radius; the values' magnitude; the padding's depth.
            bits += 3 + 4 + _MAGNITUDE + (_PADDING if op.mask is not None else 0)
        elif isinstance(op, Linear | Rescale):
            bits += _WEIGHT
        elif isinstance(op, Normalise):
            bits += 1
    return bits


def describe(program: Program, query: Query) -> Leakage:
    """Say what each party learns from a query.

    Args:
        program: The program.
        query: What is asked.
    """
    shown = {
        "embedding": "the model's output for its input, in full",
        "scores": "the score of every label",
        "top": f"the {query.k} best label{'s' if query.k > 1 else ''} in order, and no score",
    }[query.reveal]
    client = [
        shown,
        "the architecture and every size in it, and the ranges found on the calibration batch, "
        "rounded to powers of two, half units and the like: they depend on the weights, of which "
        f"they tell at most {range_bits(program)} bits",
        *(
            f"a part of the model that is public and that it runs itself: {part}"
            for part in program.public_parts
        ),
    ]
    server = [
        "when an inference runs, its program, batch size and what kind of result it gives",
    ]
    fields = {each.field for each in program.inputs}
    if fields & {"input_ids", "inputs_embeds"}:
        hidden = {"padding", "position"} & {each.kind for each in program.inputs}
        server.append(
            "the longest caption, in tokens, that the program takes, not this caption's length"
            if hidden
            else "the caption's length in tokens: the program was compiled for it"
        )
    network = ["sizes and times of messages, which program and query fix: TLS hides the rest"]
    if query.labels:
        server.append("the labels, which it embeds in the clear")
        network.append("how long the labels' texts are together")
    return Leakage(
        client=tuple(client),
        server=tuple(server),
        dealer=(
            "which program runs, its public sizes and ranges, how often and when, and of each "
            "query the batch size, the number of labels and the kind of result",
            "nothing of input, weights or result: it only sends, and what it sends is random",
        ),
        network=tuple(network),
        assumption=ASSUMPTION,
        outside=(
            "what the revealed results tell about the weights: with enough queries a model can "
            "be copied (limit the number of queries, reveal top-1)",
            "a party that departs from the protocol can spoil the result, and could learn more",
            "a dealer that colludes with one party reads the other party's secrets",
            "an input far from the calibration's range gives a wrong result without a warning",
        ),
    )
