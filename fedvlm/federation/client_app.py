"""The client: trains the adapter on its own pairs and returns it as one vector.

This module brings neither torch nor a model: most messages of a protocol need none, and over
SuperLink each message is a process of its own.
"""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedvlm.federation.agreement import compare
from fedvlm.federation.answering import protect_client
from fedvlm.federation.node import node_of, simulated
from fedvlm.federation.records import VECTOR
from fedvlm.federation.roll import AGREE, own_number, tell_number
from fedvlm.federation.terms import settings_of

__all__ = ["VECTOR", "app"]

app = ClientApp(mods=[protect_client])


@app.query()
def query(message: Message, context: Context) -> Message:
    """Tell the node's number: all that the server needs to draw clients by the seed."""
    number = own_number(context)
    number = number if number >= 0 else node_of(context).number
    return tell_number(message, number, simulated(context))


@app.query(AGREE)
def agree(message: Message, context: Context) -> Message:
    """Compare model, tokenizer, adapter and versions with the server's, before any training."""
    return compare(message, node_of(context), settings_of(context))


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train for one round.

    The message carries the adapter as one float32 array, its schema hash and the round; so does
    the reply, with the number of examples and the mean loss beside it; under
    example-level DP it carries the noised adapter and nothing else, under distributed DP noised
    integers in place of the adapter. A client beyond the configured number is a canary.
    """
    from fedvlm.federation.local_round import answer

    return answer(message, context, node_of(context), settings_of(context))


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Score an adapter on what the node holds out, where run and floor ask for it."""
    from fedvlm.federation.scoring import answer_score

    return answer_score(message, context, node_of(context), settings_of(context))
