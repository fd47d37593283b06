"""A GPU that is none: tensors on it say "cuda", compute on the CPU, and refuse to meet
tensors that are elsewhere, as those of a real one do."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch
import torchvision
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from clipadapt.images.pictures import gpu_decodes

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
aten = torch.ops.aten
# What takes tensors of two devices: `to`, `copy_`; and numbers of a CPU that choose.
BETWEEN = (aten._to_copy, aten.copy_, aten.set_)
INDEXING = (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_)


class OnGPU(torch.Tensor):
    """A tensor whose numbers lie in `held`, on the CPU, and which says "cuda".

    PyTorch's own code takes it for one on "meta", whose numbers nobody can read.
    """

    @staticmethod
    def __new__(cls, held: torch.Tensor):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device="meta",
        )
        made.held = held
        return made

    device = property(lambda self: GPU)
    is_cuda = property(lambda self: True)
    is_meta = property(lambda self: False)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _compute(func, args, kwargs or {})

    def __repr__(self) -> str:
        return f"OnGPU({self.held!r})"


def _is_gpu(device) -> bool:
    """PyTorch's own code makes tensors "like" ours on "meta"."""
    return torch.device(device).type in ("cuda", "meta")


def _check_places(func, args, kwargs) -> None:
    """RuntimeError for tensors of two devices where a GPU would refuse them."""
    packet = func.overloadpacket
    if packet in BETWEEN:
        return
    seen = tree_flatten((args, kwargs))[0]
    tensors = [each for each in seen if isinstance(each, torch.Tensor)]
    if packet in INDEXING and isinstance(args[0], OnGPU):
        tensors = [args[0], *args[2:3]]  # indices may lie on the CPU
        tensors = [each for each in tensors if isinstance(each, torch.Tensor)]
    there = [each for each in tensors if isinstance(each, OnGPU)]
    here = [each for each in tensors if not isinstance(each, OnGPU) and each.ndim]
    first = next(iter(tensors), None)
    if there and (here or (packet in INDEXING and not isinstance(first, OnGPU))):
        raise RuntimeError(
            f"Expected all tensors to be on the same device ({func}): "
            f"{[tuple(each.shape) for each in there]} on cuda:0, "
            f"{[tuple(each.shape) for each in here]} on cpu"
        )


def _compute(func, args, kwargs):
    """What PyTorch computes, on the CPU, and where the answer lies."""
    if func.overloadpacket is aten._has_compatible_shallow_copy_type:
        return isinstance(args[0], OnGPU) == isinstance(args[1], OnGPU)
    _check_places(func, args, kwargs)
    flat = tree_flatten((args, kwargs))[0]
    given = [each for each in flat if isinstance(each, OnGPU)]
    places = [each for each in flat if isinstance(each, torch.device)]
    there = _is_gpu(places[0]) if places else bool(given)
    if func.overloadpacket in (aten.copy_, aten.set_):
        there = isinstance(args[0], OnGPU)
    if kwargs.get("pin_memory") and there:
        raise RuntimeError("only dense CPU tensors can be pinned")
    args, kwargs = tree_map_only(torch.device, lambda place: CPU, (args, kwargs))
    args, kwargs = tree_map_only(OnGPU, lambda each: each.held, (args, kwargs))
    alone = {"pin_memory": False, "non_blocking": False}  # no driver is asked
    kwargs |= {name: value for name, value in alone.items() if name in kwargs}
    answer = func(*args, **kwargs)
    if not there:
        return answer
    known = {id(each.held): each for each in given}  # what is changed in place

    def wrapped(each: torch.Tensor) -> OnGPU:
        return known[id(each)] if id(each) in known else OnGPU(each)

    return tree_map_only(torch.Tensor, wrapped, answer)


class _Dispatch(TorchDispatchMode):
    """Sees what is made on "cuda" of nothing, and what is pinned."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket is aten.is_pinned:
            return False
        if func.overloadpacket is aten._pin_memory:
            if isinstance(args[0], OnGPU):
                raise RuntimeError("only dense CPU tensors can be pinned")
            return args[0].clone()
        return _compute(func, args, kwargs or {})


def _numbered(device):
    """ "cuda" as "cuda:0": without a number PyTorch asks the driver."""
    if isinstance(device, (str, torch.device)) and str(device) == "cuda":
        return GPU
    return device


class _Functions(TorchFunctionMode):
    """Gives devices their number, and makes tensors of data without the driver."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.tolist and isinstance(args[0], OnGPU):
            return args[0].held.tolist()
        if func is torch.Tensor.cuda:
            return args[0].to(GPU)
        if func == torch.Tensor.data.__set__ and isinstance(args[0], OnGPU):
            args[0].held = args[1].held
        if func is torch.Tensor.to or func is torch.Tensor.cpu:
            args = tuple(map(_numbered, args))
        if "device" in kwargs:
            kwargs["device"] = _numbered(kwargs["device"])
            of_data = (torch.tensor, torch.as_tensor, torch.asarray)
            if func in of_data and kwargs["device"] and _is_gpu(kwargs["device"]):
                return func(*args, **{**kwargs, "device": None}).to(GPU)
        return func(*args, **kwargs)


@contextmanager
def pretended_gpu() -> Iterator[torch.device]:
    """Within it there is a device "cuda"."""
    with ExitStack() as stack:
        for name, answer in {
            "is_available": lambda: True,
            "_lazy_init": lambda: None,
            "is_bf16_supported": lambda *_: True,
            "current_device": lambda: 0,
            "synchronize": lambda *_: None,
            "device_count": lambda: 1,
            "mem_get_info": lambda *_: (2**36, 2**36),
            "memory_reserved": lambda *_: 0,
            "memory_allocated": lambda *_: 0,
            "get_rng_state": lambda *_: torch.get_rng_state(),
            "set_rng_state": lambda *_: None,  # that of the CPU is restored anyway
        }.items():
            stack.enter_context(patch.object(torch.cuda, name, answer))
        decode = torchvision.io.decode_jpeg
        jpeg = lambda data, mode, place: OnGPU(decode(data, mode))  # in any thread
        stack.enter_context(patch.object(torchvision.io, "decode_jpeg", jpeg))
        without = torch.accelerator, "is_available", lambda: False
        stack.enter_context(patch.object(*without))
        gpu_decodes.cache_clear()
        stack.callback(gpu_decodes.cache_clear)
        stack.enter_context(_Dispatch())
        stack.enter_context(_Functions())
        yield GPU
