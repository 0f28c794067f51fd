"""An engine of a user's own: right every time, in no time."""

from limbeck.types import Trace


class Engine:
    name, num_parameters, costs_money = "mine", None, False

    def generate(self, requests, sampling):
        for request in requests:
            text = f"<think>Twice {request.index}.</think>{request.problem.answer}"
            yield Trace(request.id, request.problem.id, request.index, text, "stop", self.name, 9, 7)


def connect():
    return Engine()
