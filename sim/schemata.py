"""Mutants of generated Verilog, all in one text: a number chooses the one at work.

A mutant changes one operator, constant, condition or register of one module. Every instance of the
module has it. The text has a package ``mutation`` whose variable holds the chosen number, loaded
from a port ``mutant`` of the top; each changed place reads ``number == N ? changed : original``.
One build holds hundreds of mutants, and none of them costs more than a comparison.

Works on the text that :mod:`moska.gen.emit` makes: one operator per ``assign``, one statement per
line. Places whose value reaches no output are left out, and so are labels of arms that do nothing
and reset values: whether one of these matters depends on guards elsewhere, and resetting in the
middle of a job is a test of its own.
"""

import dataclasses
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from moska.gen.emit import TOP
from moska.sim.netlist import (
    ASSIGN,
    BASES,
    CONNECTION,
    CONSTANT,
    DECLARED,
    INSTANCE,
    MODULE,
    PORT,
    plain,
    width,
)

ID_BITS = 16
TOKEN = re.compile(
    r"\\\S+ ?|\$\w+|\d+'s?[hdb][0-9a-fxzXZ?_]+|[A-Za-z_]\w*|\d+|>>>|<<|>>|<=|>=|==|!=|&&|\|\||\S"
)
IDENTIFIER = re.compile(r"\\\S+|(?<![\w$'])[A-Za-z_]\w*")
WORD = re.compile(r"^    (?P<name>\\\S+|\w+) *\[(?P<index>\d+)\] = (?P<constant>\d+'[hdb]\w+);$")
CONDITION = re.compile(r"^(?P<head> +(?:end else )?if) \((?P<value>.*)\)(?P<tail>(?: begin)?)$")
LABEL = re.compile(r"^ +(?P<constant>\d+'[hdb][0-9a-f]+):$")
SET_CONSTANT = re.compile(r"^ +(?P<target>\S.*?) += (?P<constant>\d+'[hdb][0-9a-f]+);$")
LOAD = re.compile(r"^ +(?P<target>\S.*?) +<= (?P<value>.*);$")

SWAPS = {  # binary operator: (operator that takes its place, kind)
    "+": ("-", "arithmetic"), "-": ("+", "arithmetic"), "*": ("+", "arithmetic"),
    "<": ("<=", "comparison"), "<=": ("<", "comparison"),
    ">": (">=", "comparison"), ">=": (">", "comparison"),
    "==": ("!=", "comparison"), "!=": ("==", "comparison"),
    "&": ("|", "boolean"), "|": ("&", "boolean"), "^": ("|", "boolean"),
    "&&": ("||", "boolean"), "||": ("&&", "boolean"),
}  # fmt: skip
SHIFTS = ("<<", ">>", ">>>")
UNARY = {"~": "", "!": "|", "|": "&", "&": "|", "^": "|", "-": ""}
KINDS = ("arithmetic", "comparison", "boolean", "condition", "constant", "table", "stuck")
WORDS = {"input", "output", "wire", "reg", "assign", "begin", "end", "if", "else", "case", "casez",
         "endcase", "always", "posedge", "default", "initial", "integer", "for"}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Site:
    """One change that can be made.

    Members
    -------
    line
        in the text, from 0
    kind
        one of KINDS
    change
        what is changed, for people
    code
        what replaces the value (assignments, constants, table words); empty for a negated
        condition and a register that is not loaded
    """

    module: str
    line: int
    kind: str
    change: str
    code: str = ""


@dataclasses.dataclass(frozen=True)
class Mutant(Site):
    """A site with its number and the original line."""

    number: int = 0
    source: str = ""


class _Constant:
    """A sized Verilog constant, unsigned."""

    def __init__(self, text):
        match = CONSTANT.fullmatch(text)
        self.width = int(match["width"])
        self.value = int(match["digits"], BASES[match["base"]])

    def text(self, value):
        return f"{self.width}'h{value % (1 << self.width):x}"

    def flips(self, rng):
        """Return the constant with a random bit flipped."""
        return self.text(self.value ^ 1 << rng.randrange(self.width))

    def steps(self):
        """Return the constants one more and one less."""
        return dict.fromkeys((self.text(self.value + 1), self.text(self.value - 1)))


def _tokens(text):
    return [match[0] for match in TOKEN.finditer(text)]


def _top_level(tokens):
    """Positions of the tokens outside all brackets."""
    depth, places = 0, []
    for index, token in enumerate(tokens):
        if token in "([{":
            depth += 1
        elif token in ")]}":
            depth -= 1
        elif depth == 0:
            places.append(index)
    return places


def _join(tokens):
    # An escaped name ends with a space.
    return " ".join(tokens)


def _changes(value: str, rng: random.Random) -> Iterator[tuple[str, str, str]]:
    """Kind, description and text of each change of an expression with one operator."""
    tokens = _tokens(value)
    places = _top_level(tokens)
    operators = [i for i in places if i and tokens[i] in (*SWAPS, *SHIFTS)]
    if "?" in tokens and [tokens[i] for i in places if tokens[i] in "?:"] == ["?", ":"]:
        query, colon = (i for i in places if tokens[i] in "?:")
        test, yes, no = tokens[:query], tokens[query + 1 : colon], tokens[colon + 1 :]
        swapped = [*test, "?", *no, ":", *yes]
        yield "boolean", "arms swapped", _join(swapped)
        for arm, other in ((yes, no), (no, yes)):
            if len(arm) == 1 and CONSTANT.fullmatch(arm[0]):
                flipped = _Constant(arm[0]).flips(rng)
                arms = ([flipped], other) if arm is yes else (other, [flipped])
                text = _join([*test, "?", *arms[0], ":", *arms[1]])
                yield "constant", f"{arm[0]} to {flipped}", text
    elif len(operators) == 1 and tokens[0] not in UNARY:
        (at,) = operators
        operator, left, right = tokens[at], tokens[:at], tokens[at + 1 :]
        if operator in SHIFTS:
            for sign in "+-":
                text = f"{_join(left)} {operator} (({_join(right)}) {sign} 32'd1)"
                yield "arithmetic", f"shift amount {sign} 1", text
            return
        other, kind = SWAPS[operator]
        yield kind, f"{operator} to {other}", _join([*left, other, *right])
        for index, side in ((0, left), (1, right)):
            if len(side) != 1 or not CONSTANT.fullmatch(side[0]):
                continue
            constant = _Constant(side[0])
            arithmetic = kind == "arithmetic"
            for changed in constant.steps() if arithmetic else (constant.flips(rng),):
                sides = [[changed], right] if index == 0 else [left, [changed]]
                yield (
                    "arithmetic" if arithmetic else "constant",
                    f"{side[0]} to {changed}",
                    _join([*sides[0], operator, *sides[1]]),
                )
    elif not operators and tokens[0] in UNARY and len(tokens) > 1:
        kind = "arithmetic" if tokens[0] == "-" else "boolean"
        other = UNARY[tokens[0]]
        name = f"{tokens[0]} to {other}" if other else f"{tokens[0]} dropped"
        yield kind, name, f"{other} {_join(tokens[1:])}"


def _identifiers(text):
    return {name for name in IDENTIFIER.findall(text) if name not in WORDS}


def _target_width(target, widths):
    """Width of an assignment's target; None for a concatenation."""
    match = re.fullmatch(r"(?P<name>\\\S+|\w+) *(?:\[(?P<high>\d+)(?::(?P<low>\d+))?\])?", target)
    if not match or match["name"] not in widths:
        return None
    if match["high"] is None:
        return widths[match["name"]]
    return int(match["high"]) - int(match["low"] or match["high"]) + 1


class Verilog:
    """Text of a generated design, and the places where it can be changed.

    Parameters
    ----------
    text
        Verilog of :func:`moska.gen.emit.generate`
    seed
        of the bits that are flipped
    """

    def __init__(self, text: str, *, seed: int = 0):
        self.lines = text.splitlines()
        self._seed = seed
        self._spans = {}
        for match in MODULE.finditer(text):
            first = text.count("\n", 0, match.start())
            self._spans[match["name"]] = (first, first + match[0].count("\n"))
        if TOP not in self._spans:
            raise ValueError(f"verilog must have a module {TOP}")
        self._live = self._liveness()
        self.sites = [
            site
            for name, span in self._spans.items()
            if name != TOP
            for site in self._module_sites(name, *span)
        ]

    # Which values reach an output of the top -----------------------------------------------------

    def _liveness(self):
        """Pairs (module, name) whose value reaches an output of the top."""
        uses = defaultdict(set)  # pair: pairs that it is made of
        outputs, instances = defaultdict(set), []
        for module, (first, last) in self._spans.items():
            lines = self.lines[first : last + 1]
            text = "\n".join(lines)
            outputs[module] = {p["name"] for p in PORT.finditer(text) if p["way"] == "output"}
            instances += [(module, instance) for instance in INSTANCE.finditer(text)]
            for targets, sources in self._statements(lines):
                for target in targets:
                    uses[module, target] |= {(module, source) for source in sources}
        for module, instance in instances:
            kind = instance["type"]
            for connection in CONNECTION.finditer(instance["ports"]):
                names = {(module, name) for name in _identifiers(connection["value"])}
                if connection["port"] in outputs[kind]:
                    for name in names:
                        uses[name].add((kind, connection["port"]))
                else:
                    uses[kind, connection["port"]] |= names
        todo = [(TOP, name) for name in outputs[TOP]]
        live = set(todo)
        while todo:
            for pair in uses[todo.pop()] - live:
                live.add(pair)
                todo.append(pair)
        return live

    @staticmethod
    def _statements(lines):
        """Names set and names read of each assignment or always block."""
        index = 0
        while index < len(lines):
            line = lines[index]
            if assign := ASSIGN.match(line):
                yield _identifiers(assign["target"]), _identifiers(
                    assign["target"] + " " + assign["value"]
                )
            elif line.startswith("  always"):
                stop = index + 1
                if line.endswith("begin"):
                    while lines[stop] != "  end":
                        stop += 1
                block = lines[index : stop + 1]
                targets = set()
                for inner in block:
                    if load := LOAD.match(inner) or re.match(r" +(?P<target>\S.*?) += ", inner):
                        targets |= _identifiers(re.sub(r"\[.*?\]", "", load["target"]))
                yield targets, _identifiers(" ".join(block))
                index = stop
            index += 1

    # Places --------------------------------------------------------------------------------------

    def _module_sites(self, module, first, last):
        name = plain(module).removeprefix(f"{TOP}.")
        # Of its own: a change of a module leaves the sites of others as they are.
        rng = random.Random(f"{self._seed} {name}")
        lines = self.lines[first : last + 1]
        widths, tables = {}, defaultdict(dict)
        for line in lines:
            if declared := DECLARED.match(line):
                widths[declared["name"]] = width(declared)
            elif (word := WORD.match(line)) and (module, word["name"]) in self._live:
                tables[word["name"]][int(word["index"])] = _Constant(word["constant"])
        tables = {
            table: words for table, words in tables.items() if any(w.value for w in words.values())
        }
        clocked, targets, reset_depth = False, set(), None
        for offset, line in enumerate(lines):
            at = first + offset
            if line.startswith("  always"):
                clocked = "posedge" in line
                targets = self._block_targets(lines, offset)
                reset_depth = None
            if "$initial" in line:
                continue
            indent = len(line) - len(line.lstrip())
            if line.lstrip().startswith("if (rst)"):
                reset_depth = indent
                continue
            if reset_depth is not None:
                reset_depth = None if indent == reset_depth else reset_depth
                continue
            if assign := ASSIGN.match(line):
                bits = _target_width(assign["target"], widths)
                if bits and self._is_live(module, assign["target"]):
                    for kind, change, code in _changes(assign["value"], rng):
                        yield Site(name, at, kind, change, code)
                    yield from self._table_sites(name, at, assign["value"], tables, rng)
                continue
            if not any((module, target) in self._live for target in targets):
                continue
            if CONDITION.match(line):
                yield Site(name, at, "condition", "negated")
            elif label := LABEL.match(line):
                if "/* empty */" in lines[offset + 1]:
                    continue
                flipped = _Constant(label["constant"]).flips(rng)
                yield Site(name, at, "constant", f"label to {flipped}", flipped)
            elif clocked and (load := LOAD.match(line)):
                if self._is_live(module, load["target"]):
                    yield Site(name, at, "stuck", "not loaded")
                    yield from self._table_sites(name, at, load["value"], tables, rng)
            elif not clocked and (constant := SET_CONSTANT.match(line)):
                if self._is_live(module, constant["target"]):
                    flipped = _Constant(constant["constant"]).flips(rng)
                    change = f"{constant['constant']} to {flipped}"
                    yield Site(name, at, "constant", change, flipped)

    def _is_live(self, module, target):
        names = _identifiers(re.sub(r"\[.*?\]", "", target))
        return any((module, name) in self._live for name in names)

    @staticmethod
    def _block_targets(lines, offset):
        targets = set()
        for line in lines[offset + 1 :]:
            if line == "  end" or line.startswith("  always") or line.startswith("  assign"):
                break
            if found := LOAD.match(line) or re.match(r" +(?P<target>\S.*?) += ", line):
                targets |= _identifiers(re.sub(r"\[.*?\]", "", found["target"]))
        return targets

    @staticmethod
    def _table_sites(module, at, value, tables, rng):
        for table, words in tables.items():
            match = re.fullmatch(re.escape(table) + r" *\[(?P<address>.*)\]", value)
            if not match:
                continue
            for index, word in words.items():
                mask = word.text(1 << rng.randrange(word.width))
                code = (
                    f"{value} ^ (({match['address']}) == {index} ? {mask} : {word.text(0)})"
                )
                yield Site(module, at, "table", f"word {index} xor {mask}", code)

    # Choice and text -----------------------------------------------------------------------------

    def sample(
        self, count: int, *, seed: int = 0, modules: Iterable[str] | None = None
    ) -> list[Mutant]:
        """Choose sites: all modules, kinds in turn, large modules more often than small ones.

        A module's share grows with the root of its number of sites.
        """
        wanted = None if modules is None else set(modules)
        queues = {}
        for module in dict.fromkeys(site.module for site in self.sites):
            if wanted is None or module in wanted:
                queues[module] = self._in_turn(
                    [site for site in self.sites if site.module == module],
                    random.Random(f"{seed} {module}"),
                )
        total = sum(len(queue) ** 0.5 for queue in queues.values())
        chosen = []
        for queue in queues.values():
            share = max(2, round(count * len(queue) ** 0.5 / total))
            chosen += queue[:share]
        chosen.sort(key=lambda site: site.line)
        return [
            Mutant(**vars(site), number=number, source=self.lines[site.line].strip())
            for number, site in enumerate(chosen, start=1)
        ]

    @staticmethod
    def _in_turn(sites, rng):
        """Shuffle, then take one of each kind in turn."""
        kinds = defaultdict(list)
        for site in rng.sample(sites, len(sites)):
            kinds[site.kind].append(site)
        names = [kind for kind in KINDS if kind in kinds]
        rng.shuffle(names)
        return [
            kinds[kind][index]
            for index in range(max(map(len, kinds.values())))
            for kind in names
            if index < len(kinds[kind])
        ]

    def text(self, mutants: Sequence[Mutant]) -> str:
        """Verilog with these mutants."""
        if len(mutants) >= 1 << ID_BITS:
            raise ValueError(f"mutants must be fewer than {1 << ID_BITS}, not {len(mutants)}")
        by_line = defaultdict(list)
        for mutant in mutants:
            by_line[mutant.line].append(mutant)
        widths = {}
        out = ["package mutation;", f"  logic [{ID_BITS - 1}:0] number;", "endpackage"]
        for at, line in enumerate(self.lines):
            if line.startswith("module "):
                widths = {}
            if declared := DECLARED.match(line):
                widths[declared["name"]] = width(declared)
            if line.startswith(f"module {TOP}("):
                line = line.replace(f"module {TOP}(", f"module {TOP}(mutant, ", 1)
            if line == "  input aclk;":
                out += [
                    f"  input [{ID_BITS - 1}:0] mutant;",
                    "  always @(posedge aclk) mutation::number <= mutant;",
                ]
            out += self._changed(line, by_line[at], widths) if at in by_line else [line]
        return "\n".join(out) + "\n"

    def _changed(self, line, mutants, widths):
        first = mutants[0].number
        if assign := ASSIGN.match(line):
            # Through wires, so that width and sign of one choice do not change the other.
            bits = f"[{_target_width(assign['target'], widths) - 1}:0]"
            out = [f"  wire {bits} \\original${first} = {assign['value']};"]
            value = f"\\original${first} "
            for mutant in mutants:
                out.append(f"  wire {bits} \\mutant${mutant.number} = {mutant.code};")
                value = f"{_is(mutant)} ? \\mutant${mutant.number} : {value}"
            return [*out, f"  assign {assign['target']} = {value};"]
        if condition := CONDITION.match(line):
            chosen = " || ".join(_is(mutant) for mutant in mutants)
            return [
                f"{condition['head']} (({chosen}) != (| {condition['value']})){condition['tail']}"
            ]
        if label := LABEL.match(line):
            return [line.replace(label["constant"], _choice(mutants, label["constant"]))]
        if load := LOAD.match(line):
            stuck = [mutant for mutant in mutants if not mutant.code]
            changed = [mutant for mutant in mutants if mutant.code]
            value = _choice(changed, load["value"]) if changed else load["value"]
            guard = " && ".join(f"!{_is(mutant)}" for mutant in stuck)
            guard = f"if ({guard}) " if stuck else ""
            return [f"    {guard}{load['target']} <= {value};"]
        constant = SET_CONSTANT.match(line)
        indent = line[: len(line) - len(line.lstrip())]
        return [f"{indent}{constant['target']} = {_choice(mutants, constant['constant'])};"]


def _is(mutant):
    return f"(mutation::number == {ID_BITS}'d{mutant.number})"


def _choice(mutants, original):
    value = original
    for mutant in mutants:
        value = f"({_is(mutant)} ? {mutant.code} : {value})"
    return value
