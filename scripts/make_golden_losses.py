"""The worked examples of the losses: tests/fixtures/golden_losses.json.

Four tokens, two positions, every divergence written out in double precision straight from its definition, without any
library; the gradients with respect to the student's logits by complex steps, which are exact to the last digits.
`make_loss_fixtures.py` is the other road to the same losses, through TRL and autograd.

  jsd     beta 0: KL(p || q), 1: KL(q || p), else beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q
  skew    forward KL(p || a p + (1 - a) q), reverse KL(q || a q + (1 - a) p)
  top_k   the JSD on a support and one bucket for the rest; the support is the teacher's k best at beta 0, the
          student's at beta 1, their union in between
p is the teacher, q the student, both at the temperature. Every entry has a loss and a gradient for each position.

usage: make_golden_losses.py        needs: nothing
"""
import cmath
import json
import pathlib

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "golden_losses.json"
STUDENT = [[1.0, -0.5, 0.25, 2.0], [0.0, 0.0, 0.0, 0.0]]
TEACHER = [[0.5, 1.5, -1.0, 0.0], [3.0, 0.0, -1.0, 0.5]]
STEP = 1e-30


def softmax(logits, temperature):
    powers = [cmath.exp(z / temperature) for z in logits]
    return [power / sum(powers) for power in powers]


def kl(a, b):
    return sum(x * (cmath.log(x) - cmath.log(y)) for x, y in zip(a, b))


def mix(a, b, weight):
    return [weight * x + (1 - weight) * y for x, y in zip(a, b)]


def jsd(q, p, beta):
    if beta == 0:
        return kl(p, q)
    if beta == 1:
        return kl(q, p)
    m = mix(p, q, beta)
    return beta * kl(p, m) + (1 - beta) * kl(q, m)


def skew(q, p, direction, alpha):
    return kl(p, mix(p, q, alpha)) if direction == "forward" else kl(q, mix(q, p, alpha))


def top_k(q, p, k, beta):
    best = lambda row: sorted(range(len(row)), key=lambda i: -row[i].real)[:k]
    support = {0: set(best(p)), 1: set(best(q))}.get(beta, {*best(p), *best(q)})
    if len(support) == len(q):
        return jsd(q, p, beta)
    bucketed = lambda row: [row[i] for i in support] + [sum(row[i] for i in range(len(row)) if i not in support)]
    return jsd(bucketed(q), bucketed(p), beta)


def case(divergence, temperature, **facts):
    """Loss and gradient of each position."""
    losses, gradients = [], []
    for student, teacher in zip(STUDENT, TEACHER):
        value = lambda z: divergence(softmax(z, temperature), softmax(teacher, temperature), **facts)
        nudged = lambda i: [z + STEP * 1j if i == j else z for j, z in enumerate(student)]
        losses.append(round(value(student).real, 12))
        gradients.append([round(value(nudged(i)).imag / STEP, 12) for i in range(len(student))])
    return {**facts, "temperature": temperature, "loss": losses, "gradient": gradients}


def main():
    result = {
        "student": STUDENT,
        "teacher": TEACHER,
        "jsd": [case(jsd, t, beta=beta) for beta in (0, 0.1, 0.25, 0.5, 0.75, 0.9, 1) for t in (1, 2, 0.9)],
        "skew": [case(skew, 1, direction=d, alpha=0.1) for d in ("forward", "reverse")],
        "top_k": [case(top_k, 1, k=k, beta=beta) for k in (1, 2, 4) for beta in (0, 0.5, 1)],
    }
    rows = lambda value: "[\n" + ",\n".join(f"  {json.dumps(row)}" for row in value) + "\n]"
    OUT.write_text("{\n" + ",\n".join(f'"{key}": {rows(value)}' for key, value in result.items()) + "\n}\n")


if __name__ == "__main__":
    main()
