"""An engine of a user's own: right every time, in no time."""

from limbeck.types import Trace


class Engine:
    name, num_parameters, costs_money = "mine", None, False

    def generate(self, requests, sampling):
        for r in requests:
            text = f"<think>Twice {r.index}.</think>{r.problem.answer}"
            yield Trace(r.id, r.problem.id, r.index, text, "stop", self.name, 9, 7)


def connect():
    return Engine()
