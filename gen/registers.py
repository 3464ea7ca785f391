"""C header, Markdown table and Python constants of the register map."""

import pathlib
import textwrap

from moska.hw.registers import Kind, field_path, load_map

NOTE = "Generated from hw/regs.rdl by moska.gen.registers; do not edit."


def _constants(register_map):
    """Yield ``(register, [(suffix, value), ...])``, the constants of each register.

    Offset first; for every field that is not the whole register its shift and mask; for every
    constant field its value.
    """
    for register in register_map.registers:
        items = [("", register.offset)]
        for field in register.fields:
            name = "" if field.name == "value" else f"_{field.name.upper()}"
            if name:
                items += [(f"{name}_SHIFT", field.lsb), (f"{name}_MASK", field.mask)]
            if field.kind is Kind.CONSTANT:
                items.append((f"{name}_VALUE", field.reset))
        yield register, items


def _number(suffix, value):
    """Return ``value`` as a literal that C and Python share: shifts decimal, the rest hex."""
    return str(value) if suffix.endswith("_SHIFT") else f"0x{value:X}"


def c_header(register_map):
    """Return the C header: byte offsets, shifts, masks and values of constant fields."""
    prefix = register_map.name.upper()
    guard = f"{prefix}_REGS_H"
    lines = [f"/* {NOTE} */", f"#ifndef {guard}", f"#define {guard}"]
    for register, items in _constants(register_map):
        lines += ["", f"/* {register.desc} */"]
        for suffix, value in items:
            unsigned = "" if suffix.endswith("_SHIFT") else "u"
            lines.append(
                f"#define {prefix}_{register.name.upper()}{suffix} "
                f"{_number(suffix, value)}{unsigned}"
            )
    lines += ["", f"#endif /* {guard} */", ""]
    return "\n".join(lines)


def python(register_map):
    """Return the Python module: byte offsets, shifts, masks, values, and a dict per group."""
    lines = ['"""Byte offsets and fields of the registers.', "", NOTE, '"""']
    for register, items in _constants(register_map):
        lines += ["", *(f"# {line}" for line in textwrap.wrap(register.desc, 96))]
        for suffix, value in items:
            lines.append(f"{register.name.upper()}{suffix} = {_number(suffix, value)}")
    for group, desc in register_map.groups:
        lines += ["", f"# {desc}", f"{group.upper()} = {{"]
        for register in register_map.registers:
            if register.group == group:
                lines.append(f'    "{register.name}": {register.name.upper()},')
        lines.append("}")
    return "\n".join([*lines, ""])


def _access(field):
    """Return what software may do with a field."""
    return f"{field.kind.value} while `{field.lock}` is 0" if field.lock else field.kind.value


def markdown(register_map):
    """Return the page for ``docs/``: a table for the ungrouped registers and one per group."""
    lines = ["# Register map", "", f"<!-- {NOTE} -->", "", register_map.desc]
    for group, title in (("", "Control and status"), *register_map.groups):
        lines += [
            "",
            f"## {title.rstrip('.')}",
            "",
            "| Offset | Field | Bits | Access | Reset | Description |",
            "|---|---|---|---|---|---|",
        ]
        for register in register_map.registers:
            if register.group != group:
                continue
            whole = len(register.fields) == 1 and register.fields[0].name == "value"
            if not whole:
                lines.append(
                    f"| `0x{register.offset:02X}` | **{register.name.upper()}** | | | "
                    f"| {register.desc} |"
                )
            for field in register.fields:
                bits = (
                    str(field.lsb)
                    if field.width == 1
                    else f"{field.lsb + field.width - 1}:{field.lsb}"
                )
                reset = "-" if field.kind is Kind.INPUT else f"`0x{field.reset:X}`"
                if whole:
                    offset, name = f"`0x{register.offset:02X}`", f"**{register.name.upper()}**"
                    desc = f"{register.desc} {field.desc}"
                else:
                    offset, name, desc = "", f"`{field_path(register, field)}`", field.desc
                lines.append(
                    f"| {offset} | {name} | {bits} | {_access(field)} | {reset} | {desc} |"
                )
    return "\n".join([*lines, ""])


# Committed file, by path from the root of the repository, and the function that makes its text.
OUTPUTS = {
    "docs/register-map.md": markdown,
    "host/regmap.py": python,
    "host/moska_regs.h": c_header,
}


def write_all(root):
    """Write all outputs below ``root``; return their paths."""
    register_map = load_map()
    paths = []
    for name, text in OUTPUTS.items():
        path = pathlib.Path(root) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text(register_map), encoding="utf-8")
        paths.append(path)
    return paths
