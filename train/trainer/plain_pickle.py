"""Pickles read as plain data: nothing that one names is looked up, called or made.

PyTorch writes the metadata and the tensors of a checkpoint as pickles. A pickle is a program for a stack machine, and
unpickling runs it, with whatever functions it names. Here the standard library's `pickletools` takes it apart, and
names and calls stay what they are in the file: words. Dicts come out as pairs, since already the hash of a key may take
for ever. Every instruction costs the same, so time and memory grow with the size of the file only.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, repr=False)
class Name:
    """Function or class that a pickle names."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


# Compared by identity and never shown whole: either may take for ever where objects hold one another.
@dataclass(eq=False, repr=False, slots=True)
class Call:
    """Object that a pickle makes: a call of what it names, and the state that it gives the result."""

    target: Any
    arguments: Any
    state: Any = None


@dataclass(eq=False, repr=False, slots=True)
class Reference:
    """Object that a pickle leaves to others, such as the numbers of a tensor, which lie in a file of their own."""

    value: Any


@dataclass(eq=False, repr=False, slots=True)
class Pairs:
    """Keys and values of a dict, in the order of the file; a key may come several times."""

    items: list[tuple[Any, Any]] = field(default_factory=list)


def read_pickle(data: bytes) -> Any:
    """Value of a pickle: None, bool, int, str, tuple, list, `Name`, `Call`, `Reference` and `Pairs`, at any depth.

    An object that the pickle uses several times is one object in the result, too.

    Raises:
        ValueError: It is no pickle, is cut off, or has an instruction that PyTorch does not write.
    """
    machine = _Machine()
    try:
        for instruction, argument, _ in pickletools.genops(data):
            if instruction.name == "STOP":
                return machine.take(1)[0]
            machine.run(instruction.name, argument)
    except (IndexError, KeyError, TypeError) as error:
        raise ValueError(f"it is no pickle ({type(error).__name__})") from error
    raise ValueError("it is no pickle")


class _Machine:
    """Stack, marks on it, and numbered objects, as the instructions of a pickle see them."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.numbered: dict[int, Any] = {}

    def run(self, instruction: str, argument: Any) -> None:
        """Do what one instruction says; `argument` is what follows it in the file."""
        stack = self.stack
        match instruction:
            case "PROTO" | "FRAME":
                pass
            # Plain values.
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(instruction == "NEWTRUE")
            case "BININT1" | "BININT2" | "BININT" | "LONG1" | "SHORT_BINUNICODE" | "BINUNICODE":
                stack.append(argument)
            # Containers.
            case "MARK":
                self.marks.append(len(stack))
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(self.take(int(instruction[-1])))
            case "TUPLE":
                stack.append(self.take_marked())
            case "EMPTY_LIST":
                stack.append([])
            case "APPEND":
                self.extend(self.take(1))
            case "APPENDS":
                self.extend(self.take_marked())
            case "EMPTY_DICT":
                stack.append(Pairs())
            case "SETITEM":
                self.update(self.take(2))
            case "SETITEMS":
                self.update(self.take_marked())
            # Objects that are used again: those of PyTorch's tensors have numbers, others are counted.
            case "BINPUT" | "LONG_BINPUT":
                self.numbered[argument] = stack[-1]
            case "MEMOIZE":
                self.numbered[len(self.numbered)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self.numbered[argument])
            # Names, calls, states, references.
            case "GLOBAL":
                stack.append(_name(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                stack.append(_name(*self.take(2)))
            case "REDUCE" | "NEWOBJ":
                stack.append(Call(*self.take(2)))
            case "BUILD":
                self.give_state(*self.take(1))
            case "BINPERSID":
                stack.append(Reference(*self.take(1)))
            case _:
                raise ValueError(f"it has the instruction {instruction}, which no checkpoint of ours has")

    def take(self, count: int) -> tuple[Any, ...]:
        """Take the topmost objects from the stack."""
        if len(self.stack) < count:
            raise IndexError
        taken = tuple(self.stack[-count:])
        del self.stack[-count:]
        return taken

    def take_marked(self) -> tuple[Any, ...]:
        """Take all objects above the newest mark from the stack."""
        start = self.marks.pop()
        taken = tuple(self.stack[start:])
        del self.stack[start:]
        return taken

    def extend(self, values: tuple[Any, ...]) -> None:
        """Append to the list on top of the stack."""
        if not isinstance(self.stack[-1], list):
            raise TypeError
        self.stack[-1].extend(values)

    def update(self, values: tuple[Any, ...]) -> None:
        """Add keys and values, which take turns, to the dict on top of the stack."""
        if not isinstance(self.stack[-1], Pairs) or len(values) % 2:
            raise TypeError
        self.stack[-1].items.extend(zip(values[::2], values[1::2], strict=True))

    def give_state(self, state: Any) -> None:
        """Give a state to the object on top of the stack."""
        if not isinstance(self.stack[-1], Call) or self.stack[-1].state is not None:
            raise TypeError
        self.stack[-1].state = state


def _name(module: Any, name: Any) -> Name:
    if not isinstance(module, str) or not isinstance(name, str):
        raise TypeError
    return Name(module, name)
