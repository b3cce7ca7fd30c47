"""The study's figures as SVG, by hand: no library is needed."""

COLOURS = ["#2563eb", "#dc2626", "#16a34a", "#9333ea"]
WIDTH = 680


def page(title, height, parts):
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/><text x="12" y="18" font-size="13">{title}</text>', *parts, "</svg>", ""])


def across(low, high, left, right):
    """A scale from values to pixels, and marks for it."""
    span = (high - low) or 1.0
    low, high = low - 0.05 * span, high + 0.05 * span
    to = lambda v: left + (v - low) / (high - low) * (right - left)
    return to, [low + (high - low) * k / 4 for k in range(5)]


def axis(to, marks, top, bottom):
    parts = []
    for mark in marks:
        parts.append(f'<line x1="{to(mark):.1f}" x2="{to(mark):.1f}" y1="{top}" y2="{bottom}" stroke="#e5e7eb"/>'
                     f'<text x="{to(mark):.1f}" y="{bottom + 14}" text-anchor="middle">{mark:.3g}</text>')
    parts.append(f'<line x1="{to(0):.1f}" x2="{to(0):.1f}" y1="{top}" y2="{bottom}" stroke="#6b7280"/>')
    return parts


def intervals(title, rows):
    """`rows`: name -> (value, low, high)."""
    left, top, step = 280, 32, 20
    bottom = top + step * len(rows)
    ends = [0.0, *(x for row in rows.values() for x in row)]
    to, marks = across(min(ends), max(ends), left, WIDTH - 20)
    parts = axis(to, marks, top, bottom)
    for k, (name, (value, low, high)) in enumerate(rows.items()):
        y = top + step * (k + 0.5)
        parts.append(f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{name}</text>'
                     f'<line x1="{to(low):.1f}" x2="{to(high):.1f}" y1="{y}" y2="{y}" stroke="{COLOURS[0]}" stroke-width="1.6"/>'
                     f'<circle cx="{to(value):.1f}" cy="{y}" r="3.2" fill="{COLOURS[0]}"/>')
    return page(title, bottom + 24, parts)


def bars(title, names, rows):
    """`rows`: name -> a value for each of `names`."""
    left, top, step = 280, 32, 12 * len(names) + 8
    bottom = top + step * len(rows)
    values = [0.0, *(x for row in rows.values() for x in row)]
    to, marks = across(min(values), max(values), left, WIDTH - 20)
    parts = axis(to, marks, top, bottom)
    for k, (name, row) in enumerate(rows.items()):
        y = top + step * k + 4
        parts.append(f'<text x="{left - 8}" y="{y + step / 2}" text-anchor="end">{name}</text>')
        for i, value in enumerate(row):
            x0, x1 = sorted((to(0), to(value)))
            parts.append(f'<rect x="{x0:.1f}" y="{y + 12 * i}" width="{max(x1 - x0, 0.5):.1f}" height="10" fill="{COLOURS[i]}"/>')
    for i, name in enumerate(names):
        parts.append(f'<text x="{WIDTH - 20}" y="{18 + 13 * i}" text-anchor="end" fill="{COLOURS[i]}">{name}</text>')
    return page(title, bottom + 24, parts)


def dots(title, x_label, y_label, series):
    """`series`: name -> [(x, y)], both from 0 to 1, joined by lines."""
    left, top, bottom = 60, 34, 250
    x_to = lambda x: left + x * (WIDTH - left - 20)
    y_to = lambda y: bottom - y * (bottom - top)
    parts = []
    for k in range(5):
        parts.append(f'<line x1="{left}" x2="{WIDTH - 20}" y1="{y_to(k / 4):.1f}" y2="{y_to(k / 4):.1f}" stroke="#e5e7eb"/>'
                     f'<text x="{left - 6}" y="{y_to(k / 4) + 4:.1f}" text-anchor="end">{k / 4:g}</text>'
                     f'<text x="{x_to(k / 4):.1f}" y="{bottom + 14}" text-anchor="middle">{k / 4:g}</text>')
    parts.append(f'<text x="{WIDTH / 2}" y="{bottom + 28}" text-anchor="middle">{x_label}</text>')
    parts.append(f'<text x="16" y="{(top + bottom) / 2}" transform="rotate(-90 16 {(top + bottom) / 2})" text-anchor="middle">{y_label}</text>')
    for i, (name, line) in enumerate(series.items()):
        path = " ".join(f"{x_to(x):.1f},{y_to(y):.1f}" for x, y in line)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{COLOURS[i]}" stroke-width="1.4"/>')
        parts += [f'<circle cx="{x_to(x):.1f}" cy="{y_to(y):.1f}" r="2.6" fill="{COLOURS[i]}"/>' for x, y in line]
        parts.append(f'<text x="{WIDTH - 20}" y="{18 + 13 * i}" text-anchor="end" fill="{COLOURS[i]}">{name}</text>')
    return page(title, bottom + 36, parts)
