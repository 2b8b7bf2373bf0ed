"""The result as tables in Markdown, to be read and to be pasted into docs/performance.md."""

from collections.abc import Iterable


def markdown(found: dict) -> str:
    """All tables of a result, as far as it has come."""
    parts = [header(found), stages(found)]
    makers = {
        "correctness": correctness,
        "training": training,
        "training beside transformers": beside,
        "decoding": decoding,
        "decoding beside transformers": beside,
        "head loss": head_loss,
    }
    for name, make in makers.items():
        if rows := found.get(name):
            parts.append(f"### {name.capitalize()}\n\n{make(rows)}")
    return "\n\n".join(parts)


def header(found: dict) -> str:
    device = found.get("device", {"kind": "no device"})
    tiny = " (tiny models: no measurement)" if device.get("tiny") else ""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    peak = device.get("peak_flops")
    peak = f"{peak / 1e12:.3g} TFLOP/s in bfloat16, dense" if peak else "unknown"
    return (
        f"## {device['kind']}{tiny}\n\n{found['date']}, commit {found['commit']}; "
        f"{device.get('memory_gib')} GiB for JAX; peak {peak} (planning/targets.py); "
        f"driver: {found['driver']}; {found['machine']}; Python {found['python']}, {versions}"
    )


def stages(found: dict) -> str:
    rows = [(name, stage["seconds"], stage["ended"]) for name, stage in found["stages"].items()]
    return grid(("stage", "seconds", "ended"), rows)


def correctness(checks: dict) -> str:
    rows = []
    for name, check in checks.items():
        bounds = check.get("bounds", {})
        shown = [
            f"{key} {number(error)}" + (f" (bound {bounds[key]:g})" if key in bounds else "")
            for key, error in check.get("errors", {}).items()
        ]
        passes = "**fails**" if not check["passes"] else "passes" if bounds else "told only"
        rows.append((name, passes, ", ".join(shown) or check["error"]))
    return grid(("check", "", "errors"), rows)


def training(cases: dict) -> str:
    names = ("size, lengths, loss", "batch", "remat", "seconds a step", "tokens/s", "sequences/s")
    names += ("MFU", "program GiB", "peak GiB so far", "planned GiB, s", "cuDNN calls")
    rows = []
    for case, row in cases.items():
        if "error" in row:
            rows.append((case, row["error"]))
            continue
        mfu, planned = row.get("mfu"), number(row.get("planned_seconds"))
        figures = (case, row["batch"], row["remat"], range_of(row["step_seconds"]))
        figures += (f"{row['tokens_per_second']:,}", f"{row['sequences_per_second']:,}")
        figures += (mfu and f"{mfu:.1%}", row["program_gib"], number(row["peak_gib_so_far"]))
        rows.append((*figures, f"{row['planned_gib']}, {planned}", row["fused_attentions"]))
    return grid(names, rows)


def decoding(cases: dict) -> str:
    names = ("model, tokens in/out, prompts x samples", "tokens/s", "seconds", "first token (s)")
    rows = []
    for case, row in cases.items():
        if "error" in row:
            rows.append((case, row["error"]))
            continue
        seconds = range_of(row["seconds"]), range_of(row["first_token_seconds"])
        figures = number(1000 * row["token_seconds"]), number(row["peak_gib_so_far"])
        rows.append((case, f"{row['tokens_per_second']:,}", *seconds, *figures))
    return grid((*names, "a further token (ms)", "peak GiB so far"), rows)


def beside(cases: dict) -> str:
    contenders = cases["contenders"]
    notes = [f"{name}: {it.get('error') or it['what']}" for name, it in contenders.items()]
    rows = []
    for case, row in cases.items():
        if "error" in row:
            rows.append((case, row["error"]))
        elif case != "contenders":
            seconds = [range_of(row[n]["seconds"]) if n in row else "" for n in contenders]
            ratio = [r["times_as_long"] for r in row.values() if "times_as_long" in r]
            rows.append((case, *seconds, range_of(ratio[0]) if ratio else ""))
    table = grid(("", *(f"{name} (s)" for name in contenders), "times as long"), rows)
    return f"{'; '.join(notes)}.\n\n{table}"


def head_loss(cases: dict) -> str:
    rows = []
    for case, forms in cases.items():
        if "error" in forms:
            rows.append((case, forms["error"]))
            continue
        for form, row in forms.items():
            ratio = row.get("dense_over_ours")
            seconds = range_of(row["seconds"]), range_of(ratio) if ratio else ""
            megabytes = (
                number(row.get("temporaries_mb")),
                number(row.get("beyond_head_gradient_mb")),
            )
            rows.append((f"{case}: {form}", *seconds, *megabytes))
    names = ("", "seconds", "dense takes (times)", "temporaries (MB)", "beyond the gradient (MB)")
    return grid(names, rows)


def range_of(values: dict) -> str:
    """The median, and the smallest and largest in brackets."""
    return f"{number(values['median'])} ({number(values['min'])}-{number(values['max'])})"


def number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g}"


def grid(names: Iterable[str], rows: Iterable[Iterable]) -> str:
    names = list(names)
    lines = [names, ["---"] * len(names)]
    lines += [[*row, *[""] * (len(names) - len(row))] for row in map(list, rows)]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
