"""Turn a failed torch.export into one sentence: the line of the user's model, and what to write there instead."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from dsopt.errors import CaptureError
from dsopt.frontend.traces import Line, chain_of, model_lines, where_text
from dsopt.frontend.varying import explain_sizes

_STATIC = "A compiled program is one fixed graph: it cannot look at the values of tensors to decide what to compute."


class _Advice(NamedTuple):
    """What is wrong, why, and what to write instead."""

    code: str
    what: str
    why: str
    fix: str


def explain_export_failure(error: BaseException, model: nn.Module | None = None) -> CaptureError:
    """Return the CaptureError (DS0170 to DS0180) that a user should see for what torch.export raised.

    model: names the layer in which the failure happened. Never raises; an unknown failure keeps torch's own words.
    """
    if isinstance(error, CaptureError):
        return error
    lines = next((found for item in chain_of(error) if (found := model_lines(item, model))), [])
    sizes = explain_sizes(error, model)
    if sizes is not None:
        return sizes
    text, names = str(error), {kind.__name__ for kind in type(error).__mro__}
    for rule in _RULES:
        advice = rule(names, text, lines)
        if advice is not None:
            return CaptureError(advice.code, advice.what, where=where_text(lines), why=advice.why, fix=advice.fix)
    return _unknown(error, lines)


def _unknown(error: BaseException, lines: list[Line]) -> CaptureError:
    message = _first_line(str(error)) or "no message"
    if lines:
        return CaptureError(
            "DS0180",
            f"the model raised {type(error).__name__}: {message}",
            where=where_text(lines),
            fix="Call the model on the example without dsopt; if it fails there too, the fault is in the model or the example.",
        )
    return CaptureError(
        "DS0180",
        f"torch.export failed: {type(error).__name__}: {message}",
        fix="Call torch.export.draft_export(model, args) for torch's own report of all problems.",
    )


def _first_line(text: str) -> str:
    return next((line.strip()[:400] for line in text.splitlines() if line.strip()), "")


# ---- rules: (names of the exception's classes, its text, lines of the model) -> advice, or None if another one is to look ----

_Rule = Callable[[set[str], str, list[Line]], "_Advice | None"]


def _data_dependent(names: set[str], text: str, lines: list[Line]) -> _Advice | None:
    kinds = {"GuardOnDataDependentSymNode", "DataDependentOutputException", "DynamicOutputShapeException"}
    if not names & kinds and "data-dependent" not in text:
        return None
    code = lines[0].code if lines else ""
    has_data_size = bool(re.search(r"Size-like symbols: u\d", text))
    for pattern, what, fix in _CODE_ADVICE:
        if re.search(pattern, code):
            if has_data_size and "tensor has" in what:
                break
            return _Advice("DS0170", what, _STATIC, fix)
    if has_data_size or "DynamicOutputShapeException" in names:
        return _Advice(
            "DS0170",
            "the size of a tensor depends on the values of another",
            _STATIC + " nonzero, unique, masked_select and x[mask] give as many elements as the data has.",
            "Keep the full size and mask instead: torch.where(mask, x, 0.0) or x * mask; for the best few, torch.topk with a fixed k.",
        )
    return _Advice(
        "DS0170",
        "the model uses the value of a tensor as a Python number",
        _STATIC,
        "Stay in tensors: torch.where(condition, a, b) for a choice, tensor arithmetic for a number, indexing with a tensor for a table.",
    )


_CODE_ADVICE = (
    (
        r"^while\b",
        "the model loops until a tensor has some value",
        "Take a fixed number of steps and keep the finished values:\n"
        "for _ in range(STEPS): x = torch.where(done(x), x, step(x))",
    ),
    (
        r"^assert\b",
        "the model asserts something about the values of a tensor",
        "Remove the assert, or leave it out of the export: if not torch.compiler.is_exporting(): assert ...\n"
        "For sizes use torch._check(x.shape[0] > 0).",
    ),
    (
        r"^for\b.*\brange\b",
        "the model loops as often as a tensor says",
        "Loop a fixed number of times and mask the rest: for i in range(MAX): x = torch.where(i < n, step(x), x)\n"
        "Or make the count a Python int argument of the model.",
    ),
    (
        r"^(el)?if\b|\bif\b.*\belse\b|\bmax\(|\bmin\(|\band\b|\bor\b|\bnot\b",
        "the model chooses by the value that a tensor has",
        "Compute both and select: x = torch.where(condition, a, b)\nIf the choice is made once and for all, make it in __init__ "
        "from a Python value.",
    ),
    (
        r"\bmath\.(\w+)\(",
        "the model gives a tensor to a function of Python's math module",
        "Use torch's function of the same name: torch.sqrt(x) for math.sqrt(x).",
    ),
    (
        r"\.item\(\)|\.tolist\(\)|\b(int|float|bool)\(",
        "the model takes a Python number out of a tensor",
        "Leave out .item(), int() and float(): a tensor of one element takes part in arithmetic as it is.\n"
        "As a size or a count it must be known when the model is captured: make it a Python int argument.",
    ),
    (
        r"\w\[[^\]]*\w[^\]]*\]",
        "the model indexes a Python list or a size with the value of a tensor",
        "Keep the table in a tensor and index that: self.register_buffer('table', torch.tensor([...])); self.table[index].",
    ),
)


def _outside_torch(names: set[str], text: str, lines: list[Line]) -> _Advice | None:
    code = lines[0].code if lines else ""
    if "__format__" in text or (re.search(r"\bprint\(|logg?(er|ing)\.", code) and "Tensor" in text):
        return _Advice(
            "DS0172",
            "the model formats the value of a tensor, to print or log it",
            "While it is captured, a tensor has a shape and no values.",
            "Remove the line, or leave it out of the export: if not torch.compiler.is_exporting(): print(...)",
        )
    if ".numpy()" in text or (
        re.search(r"\bnp\.|\bnumpy\.|\.numpy\(\)", code) and "RuntimeError" in names | {"TypeError"} & names
    ):
        return _Advice(
            "DS0172",
            "the model leaves torch for numpy",
            "torch.export sees only what torch computes; numpy would see a tensor without values.",
            "Use torch's function: torch.tanh(x) for np.tanh(x.numpy()). What does not depend on the input can be computed in __init__.",
        )
    if "data pointer" in text or "data_ptr" in code:
        return _Advice(
            "DS0172",
            "the model takes the address of a tensor's memory, as kernels of other libraries do",
            "While it is captured, a tensor has a shape and no memory.",
            "Wrap the kernel as an operator with torch.library.custom_op and give it a shape rule with register_fake.",
        )
    return None


def _call(names: set[str], text: str, lines: list[Line]) -> _Advice | None:
    first = _first_line(text)
    if 'missing the required "forward"' in text:
        return _Advice(
            "DS0173",
            "the model has no forward method",
            "",
            "Define forward(self, ...) in its class, at the right indentation.",
        )
    if not lines and re.search(
        r"missing a required( keyword-only)? argument|too many positional|unexpected keyword|multiple values", text
    ):
        return _Advice(
            "DS0173",
            f"the example does not fit the arguments of forward: {first}",
            "",
            "Give one example for each argument of forward that has no default: args=(x, y), kwargs={'mask': mask}.",
        )
    if found := re.search(r"Unsupported input type <class '([^']+)'>", text):
        return _Advice(
            "DS0174",
            f"an input is a {found[1]}, which is not made of tensors",
            "Inputs may be tensors and plain values in tuples, lists, dicts, named tuples and registered dataclasses.",
            "Pass its tensors one by one, or register its class: torch.export.register_dataclass(Class).",
        )
    if found := re.search(
        r"Found <class '([^']+)'> in output|got (?:unsupported )?output type[^<]*<class '([^']+)'>", text
    ):
        return _Advice(
            "DS0174",
            f"the model returns a {found[1] or found[2]}, which is not made of tensors",
            "Outputs may be tensors and plain values in tuples, lists, dicts, named tuples and registered dataclasses.",
            "Return its tensors in a dict, {'logits': y}, or register its class: torch.export.register_dataclass(Class).",
        )
    return None


def _operator(names: set[str], text: str, lines: list[Line]) -> _Advice | None:
    if "UnsupportedOperatorException" in names:
        op = _first_line(text)
        name = "::".join(op.split(".")[:2])
        return _Advice(
            "DS0176",
            f"the operator {op} does not say what shape its result has",
            "While the model is captured no operator runs; each must have a shape rule, a fake kernel.",
            f'Register one:\n@torch.library.register_fake("{name}")\ndef _(x): return torch.empty_like(x)',
        )
    return None


_DEVICE = re.compile(
    r"not (?:compiled|linked) with|No CUDA GPUs|same device|NVIDIA driver|on a CUDA device|Torch not compiled",
    re.IGNORECASE,
)


def _device(names: set[str], text: str, lines: list[Line]) -> _Advice | None:
    if "FakeTensorDeviceMismatchError" in names or _DEVICE.search(text):
        return _Advice(
            "DS0177",
            f"the model puts tensors on different devices, or on one that is not here: {_first_line(text)}",
            "Models are captured on the CPU, whatever they are compiled for.",
            "Make tensors where the input is: device=x.device, or self.register_buffer(...) in __init__; no .cuda() in forward.",
        )
    return None


_SHAPES = re.compile(
    r"reduction dim|size of tensor|shapes? cannot be multiplied|is invalid for input of size|could not be broadcast|not broadcastable|"
    r"broadcast|expected input\[|to have \d+ channels|Sizes of tensors must match|out of range|size mismatch|same number of dimensions|"
    r"input\.size\(-1\) must be|dimension specified|must match the size|split_with_sizes|Expected \d+D|incompatible with|stack expects",
    re.IGNORECASE,
)
_DTYPES = re.compile(
    r"same dtype|scalar types|dtype|Input type \(|expected scalar type|should be the same|can't be cast|not implemented for '",
    re.IGNORECASE,
)


def _mismatch(names: set[str], text: str, lines: list[Line]) -> _Advice | None:
    if not lines or not names & {"RuntimeError", "ValueError", "IndexError"}:
        return None
    for pattern, noun in ((_SHAPES, "shapes"), (_DTYPES, "dtypes")):
        if pattern.search(text):
            return _Advice(
                "DS0175",
                f"{noun} do not fit in the model: {_first_line(text)}",
                "",
                f"Check the example against what the model expects: the {noun} of its inputs decide those of all that follows. "
                "The model fails in the same way when called on the example.",
            )
    return None


_RULES: tuple[_Rule, ...] = (_data_dependent, _outside_torch, _call, _operator, _device, _mismatch)
