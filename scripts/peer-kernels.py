#!/usr/bin/env python3
"""PyTorch's and bitsandbytes' operations beside ours, on the same GPU with the same sizes: reads rows of the benchmarks (cuda_copy, cuda_kernel_*, cuda_gemm_*, cuda_linear_*,
cuda_attention_*) and prints a row for each that one of them has too.

usage: peer-kernels.py [--list] [--device cuda|cpu] ROWS...
  ROWS    files with rows, one JSON object a line; lines of a rehearsal ("rehearsal, no result: {...}") count as well
  --list  say which rows have a counterpart, and measure nothing (needs neither PyTorch nor a GPU)

A rate is the same bytes or operations by the time of one call: every input read once, every output written once. As in our benchmarks, calls take turns over so many sets of tensors
that no cache holds them, and many calls are timed from an idle device to an idle one. The median of 15 such slices counts. What autograd adds to a backward pass is in it.
"""
import argparse
import json
import os
import re
import statistics
import sys
import time

ROTATED_BYTES = 512e6
ROUNDS = 15
SLICE_SECONDS = 6e-3

BF16, F32 = 2, 4


def number_groups(pattern):
    return re.compile("^" + pattern.replace("N", r"(\d+)") + "$")


class Peers:
    """How each operation is called: a method makes the tensors and returns the library, the call's name, its bytes or operations, and the call."""

    def __init__(self, device):
        import torch
        self.torch, self.device = torch, device
        self.functional = torch.nn.functional
        torch.manual_seed(1)

    # ---- tensors ----
    def bf16(self, *shape):
        return (2 * self.torch.rand(*shape, device=self.device) - 1).to(self.torch.bfloat16)

    def f32(self, *shape):
        return 2 * self.torch.rand(*shape, device=self.device) - 1

    def ids(self, count, most):
        return self.torch.randint(0, most, (count,), device=self.device)

    @staticmethod
    def sets(size, make):
        return [make() for _ in range(min(64, max(1, int(-(-ROTATED_BYTES // size)))))]

    @staticmethod
    def turns(made, call):
        return lambda i: call(*made[i % len(made)])

    def backward(self, made, forward):
        """The gradients of what asks for one; the graph of each set is made once and kept."""
        graphs = []
        for inputs, gradient in made:
            wanted = [x for x in inputs if x.requires_grad]
            graphs.append((forward(*inputs), wanted, gradient))
        return lambda i: self.torch.autograd.grad(graphs[i % len(graphs)][0], graphs[i % len(graphs)][1], graphs[i % len(graphs)][2], retain_graph=True)

    # ---- torch ----
    def copy(self):
        size = 1 << 30
        source, target = (self.torch.empty(size, dtype=self.torch.uint8, device=self.device) for _ in "ab")
        return "torch", "Tensor.copy_", 2.0 * size, lambda i: target.copy_(source)

    def rms_norm_forward(self, n, d):
        size = 2.0 * n * d * BF16
        weight, made = self.bf16(d), self.sets(size, lambda: (self.bf16(n, d),))
        return "torch", "rms_norm", size, self.turns(made, lambda x: self.functional.rms_norm(x, (d,), weight, 1e-5))

    def rms_norm_backward(self, n, d):
        size = 3.0 * n * d * BF16
        weight, made = self.bf16(d), self.sets(size, lambda: ((self.bf16(n, d).requires_grad_(),), self.bf16(n, d)))
        return "torch", "rms_norm, backward", size, self.backward(made, lambda x: self.functional.rms_norm(x, (d,), weight, 1e-5))

    def rope_apply(self, n, heads, dim):
        size = 2.0 * n * heads * dim * BF16 + n * dim * F32
        cosine, sine = self.bf16(n, 1, dim), self.bf16(n, 1, dim)

        def rotate(x):
            return x * cosine + self.torch.cat((-x[..., dim // 2:], x[..., :dim // 2]), -1) * sine
        return "torch", "rotary embedding as in transformers", size, self.turns(self.sets(size, lambda: (self.bf16(n, heads, dim),)), rotate)

    def gated_forward(self, n, f, name, activation):
        size = 3.0 * n * f * BF16
        return "torch", name, size, self.turns(self.sets(size, lambda: (self.bf16(n, f), self.bf16(n, f))), lambda gate, up: activation(gate) * up)

    def gated_backward(self, n, f, name, activation):
        size = 5.0 * n * f * BF16
        made = self.sets(size, lambda: ((self.bf16(n, f).requires_grad_(), self.bf16(n, f).requires_grad_()), self.bf16(n, f)))
        return "torch", name + ", backward", size, self.backward(made, lambda gate, up: activation(gate) * up)

    def swiglu_forward(self, n, f):
        return self.gated_forward(n, f, "silu(gate) * up", self.functional.silu)

    def swiglu_backward(self, n, f):
        return self.gated_backward(n, f, "silu(gate) * up", self.functional.silu)

    def geglu_forward(self, n, f):
        return self.gated_forward(n, f, "gelu(gate, tanh) * up", lambda x: self.functional.gelu(x, approximate="tanh"))

    def geglu_backward(self, n, f):
        return self.gated_backward(n, f, "gelu(gate, tanh) * up", lambda x: self.functional.gelu(x, approximate="tanh"))

    def embedding_forward(self, n, d):
        size, vocabulary = 2.0 * n * d * BF16, 128256
        table, tokens = self.bf16(vocabulary, d), self.ids(n, vocabulary)
        return "torch", "embedding", size, lambda i: self.functional.embedding(tokens, table)

    def rows_gather(self, m, d):
        size = 2.0 * m * d * BF16
        rows, made = self.torch.arange(m, device=self.device) * 2, self.sets(1.5 * size, lambda: (self.bf16(2 * m, d),))
        return "torch", "index_select", size, self.turns(made, lambda x: self.torch.index_select(x, 0, rows))

    def rows_scatter(self, m, d):
        size = 2.0 * m * d * BF16
        rows, made = self.torch.arange(m, device=self.device) * 2, self.sets(1.5 * size, lambda: (self.bf16(2 * m, d), self.bf16(m, d)))
        return "torch", "index_copy_", size, self.turns(made, lambda x, part: x.index_copy_(0, rows, part))

    def add(self, n, d):
        size = 3.0 * n * d * BF16
        made = self.sets(size, lambda: (self.bf16(n, d), self.bf16(n, d), self.bf16(n, d)))
        return "torch", "add", size, self.turns(made, lambda a, b, c: self.torch.add(a, b, out=c))

    def add_bias(self, n, d):
        size = 2.0 * n * d * BF16
        bias = self.bf16(d)
        return "torch", "Tensor.add_", size, self.turns(self.sets(size, lambda: (self.bf16(n, d),)), lambda x: x.add_(bias))

    def bias_gradient(self, n, d):
        size = 1.0 * n * d * BF16
        return "torch", "sum over rows", size, self.turns(self.sets(size, lambda: (self.bf16(n, d),)), lambda x: x.sum(0, dtype=self.torch.float32))

    def cast_to_bf16(self, n, d):
        size = 3.0 * n * d * BF16
        return "torch", "Tensor.copy_ to bf16", size, self.turns(self.sets(size, lambda: (self.bf16(n, d), self.f32(n, d))), lambda narrow, wide: narrow.copy_(wide))

    def dropout_apply(self, n, d):
        size = 2.0 * n * d * BF16
        return "torch", "dropout", size, self.turns(self.sets(size, lambda: (self.bf16(n, d),)), lambda x: self.functional.dropout(x, 0.1, True))

    def softmax_cross_entropy(self, m, v):
        size = 1.5 * m * v * F32
        targets, made = self.ids(m, v), self.sets(size, lambda: (self.f32(m, v).requires_grad_(),))

        def both(logits):
            return self.torch.autograd.grad(self.functional.cross_entropy(logits, targets), logits)
        return "torch", "cross_entropy, forward and backward", size, self.turns(made, both)

    def sum_of_squares(self, count):
        size = 1.0 * count * F32
        return "torch", "linalg.vector_norm", size, self.turns(self.sets(size, lambda: (self.f32(count),)), self.torch.linalg.vector_norm)

    def adamw_step(self, count):
        parameter = self.torch.nn.Parameter(self.f32(count))
        parameter.grad = self.f32(count)
        optimizer = self.torch.optim.AdamW([parameter], lr=1e-4, fused=self.device != "cpu")
        return "torch", "AdamW, fused", 7.0 * count * F32, lambda i: optimizer.step()

    def product(self, kind, m, n, k):
        a = self.bf16(k, m).T if kind[0] == "t" else self.bf16(m, k)
        b = self.bf16(n, k).T if kind[1] == "t" else self.bf16(k, n)
        return a, b, self.bf16(m, n)

    def gemm(self, kind, m, n, k):
        a, b, c = self.product(kind, m, n, k)
        return "torch", "mm", 2.0 * m * n * k, lambda i: self.torch.mm(a, b, out=c)

    def adapter(self, kind, m, n, k):
        adds = k < n   # the second product adds to what is there
        small, large = min(m, n, k), 1.0 * BF16 * m * max(n, k)
        size = (2 if adds else 1) * large + 1.0 * BF16 * small * (m + max(n, k))
        made = self.sets(size, lambda: self.product(kind, m, n, k))
        return "torch", "addmm" if adds else "mm", size, self.turns(made, (lambda a, b, c: c.addmm_(a, b)) if adds else (lambda a, b, c: self.torch.mm(a, b, out=c)))

    def attention_inputs(self, count, length, heads, dim, gradients):
        keys = max(1, heads // 4)
        q, k, v = (self.bf16(count, h, length, dim) for h in (heads, keys, keys))
        if gradients:
            q, k, v = (x.requires_grad_() for x in (q, k, v))
        return q, k, v

    def attend(self, q, k, v):
        return self.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    def attention_forward(self, count, length, heads, dim):
        made = [self.attention_inputs(count, length, heads, dim, False)]
        return "torch", "scaled_dot_product_attention", 2.0 * count * length * length * heads * dim, self.turns(made, self.attend)

    def attention_backward(self, count, length, heads, dim):
        made = [(self.attention_inputs(count, length, heads, dim, True), self.bf16(count, heads, length, dim))]
        return "torch", "scaled_dot_product_attention, backward", 5.0 * count * length * length * heads * dim, self.backward(made, self.attend)

    # ---- bitsandbytes ----
    @property
    def bnb(self):
        import bitsandbytes
        return bitsandbytes

    def quantize4(self, code, rows, width):
        count = rows * width
        size = count * F32 + count / 2 + count / 64 * F32
        made = self.sets(count * F32, lambda: (self.f32(rows, width),))
        return "bitsandbytes", "quantize_4bit", size, self.turns(made, lambda x: self.bnb.functional.quantize_4bit(x, blocksize=64, compress_statistics=False, quant_type=code))

    def dequantize4(self, code, rows, width, double):
        count = rows * width
        size = count * BF16 + count / 2 + count / 64 * (1 if double else F32)
        made = self.sets(size, lambda: self.bnb.functional.quantize_4bit(self.bf16(rows, width), blocksize=64, compress_statistics=double, quant_type=code))
        return "bitsandbytes", "dequantize_4bit", size, self.turns(made, self.bnb.functional.dequantize_4bit)

    def int8_quantize(self, rows, width):
        # It takes f16, of half the bytes: the rate counts those that ours has to read.
        size = 1.0 * rows * width * (F32 + 1) + rows * F32
        made = self.sets(size, lambda: (self.f32(rows, width).half(),))
        return "bitsandbytes", "int8_vectorwise_quant", size, self.turns(made, self.bnb.functional.int8_vectorwise_quant)

    def int8_dequantize(self, rows, width):
        size = 1.0 * rows * width * (BF16 + 1)
        made = self.sets(size, lambda: self.bnb.functional.int8_vectorwise_quant(self.f32(rows, width).half())[:2])
        return "bitsandbytes", "int8_vectorwise_dequant", size, self.turns(made, self.bnb.functional.int8_vectorwise_dequant)

    def adamw_8bit_step(self, count):
        parameter = self.torch.nn.Parameter(self.f32(count))
        parameter.grad = self.f32(count)
        optimizer = self.bnb.optim.AdamW8bit([parameter], lr=1e-4)
        return "bitsandbytes", "AdamW8bit", 3.0 * count * F32 + 4.0 * count, lambda i: optimizer.step()

    def linear(self, n, f, d, backward):
        packed, state = self.bnb.functional.quantize_4bit(self.bf16(f, d), blocksize=64, compress_statistics=True, quant_type="nf4")
        x, gradient = self.bf16(n, d), self.bf16(n, f)
        if not backward:
            return "bitsandbytes", "matmul_4bit", 2.0 * n * f * d, lambda i: self.bnb.matmul_4bit(x, packed.t(), quant_state=state)
        y = self.bnb.matmul_4bit(x.requires_grad_(), packed.t(), quant_state=state)
        return "bitsandbytes", "matmul_4bit, backward", 2.0 * n * f * d, lambda i: self.torch.autograd.grad(y, x, gradient, retain_graph=True)

    # ---- measuring ----
    def synchronize(self):
        if self.device != "cpu":
            self.torch.cuda.synchronize()

    def seconds(self, call, count):
        self.synchronize()
        start = time.perf_counter()
        for i in range(count):
            call(i)
        self.synchronize()
        return (time.perf_counter() - start) / count

    def median_seconds(self, call):
        self.seconds(call, 1)
        count = int(min(1000, max(1, SLICE_SECONDS / self.seconds(call, 5))))
        return statistics.median(self.seconds(call, count) for _ in range(ROUNDS))


def counterparts():
    """Pattern of a row's name, and what makes its counterpart of the numbers in it."""
    kernels = {
        "rms_norm_forward": 2, "rms_norm_backward": 2, "rope_apply": 3, "swiglu_forward": 2, "swiglu_backward": 2, "geglu_forward": 2, "geglu_backward": 2, "embedding_forward": 2,
        "rows_gather": 2, "rows_scatter": 2, "add": 2, "add_bias": 2, "bias_gradient": 2, "cast_to_bf16": 2, "dropout_apply": 2, "softmax_cross_entropy": 2, "sum_of_squares": 1,
        "adamw_step": 1, "adamw_8bit_step": 1, "int8_quantize": 2, "int8_dequantize": 2,
    }
    yield number_groups("cuda_copy"), Peers.copy
    for name, count in kernels.items():
        yield number_groups(f"cuda_kernel_{name}_{'x'.join('N' * count)}"), getattr(Peers, name)
    for code in ("nf4", "fp4"):
        yield number_groups(f"cuda_kernel_{code}_quantize_NxN"), lambda peers, *size, code=code: peers.quantize4(code, *size)
        yield number_groups(f"cuda_kernel_{code}_dequantize_NxN"), lambda peers, *size, code=code: peers.dequantize4(code, *size, double=False)
        yield number_groups(f"cuda_kernel_{code}_dequantize_double_NxN"), lambda peers, *size, code=code: peers.dequantize4(code, *size, double=True)
    for kind in ("nt", "nn"):
        yield number_groups(f"cuda_gemm_bf16_{kind}_NxNxN"), lambda peers, *size, kind=kind: peers.gemm(kind, *size)
        yield number_groups(f"cuda_gemm_adapter_{kind}_NxNxN"), lambda peers, *size, kind=kind: peers.adapter(kind, *size)
    for way in ("forward", "backward"):
        yield number_groups(f"cuda_linear_nf4_{way}_NxNxN"), lambda peers, *size, way=way: peers.linear(*size, backward=way == "backward")
        yield number_groups(f"cuda_attention_{way}_NxNxN"), lambda peers, *size, way=way: getattr(peers, "attention_" + way)(1, *size)
        yield number_groups(f"cuda_attention_{way}_NxNxNxN"), lambda peers, *size, way=way: getattr(peers, "attention_" + way)(*size)


def read_rows(paths):
    rows = {}
    for path in paths:
        for line in open(path, encoding="utf-8"):
            text = line.removeprefix("rehearsal, no result: ")
            if text.startswith('{"name":"cuda_'):
                row = json.loads(text)
                rows[row["name"]] = row
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="+")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    arguments = parser.parse_args()
    missing = [path for path in arguments.rows if not os.path.exists(path)]
    if missing:
        sys.exit(f"peer-kernels.py: there is no {missing[0]}: measure the rows first (scripts/gpu-check.sh bench)")
    known = list(counterparts())
    found = [(row, make, match) for row in read_rows(arguments.rows).values() for pattern, make in known if (match := pattern.match(row["name"]))]
    if arguments.list:
        for row, _, _ in found:
            print(row["name"])
        return 0 if found else 1

    peers = Peers(arguments.device)
    failures = 0
    for row, make, match in found:
        try:
            library, call_name, work, call = make(peers, *map(int, match.groups()))
            rate = work / peers.median_seconds(call) / (1e12 if row["unit"] == "TFLOP/s" else 1e9)
        except Exception as problem:   # one operation that a version has not leaves the others
            failures += 1
            print(f"{row['name']}_beside left out: {type(problem).__name__}: {problem}", file=sys.stderr)
            continue
        finally:
            call = None
            if arguments.device != "cpu":
                peers.torch.cuda.empty_cache()
        version = __import__(library).__version__
        print(json.dumps(dict(
            name=f"{row['name']}_beside", value=row["value"], unit=row["unit"], baseline=f"{library} {version}: {call_name}", baseline_value=round(rate, 3), ratio=round(row["value"] / rate, 3),
            machine=row["machine"], commit=row["commit"], command="scripts/peer-kernels.py")), flush=True)
    return 0 if failures < len(found) else 1


if __name__ == "__main__":
    sys.exit(main())
