"""Distillation losses: values a token and gradients with respect to the student's logits: tests/fixtures/losses.json.

`student` and `teacher` are logits [6, 40], exact in f32; all answers are computed in f64. A `value` has one number a
token; a `grad` is that of the sum over tokens, flat, in the order of `student`.
  jsd       TRL's own generalized_jsd_loss, for each beta and temperature
  skew      KL(p || a p + (1-a) q) and KL(q || a q + (1-a) p), as in DistiLLM
  top_k     the distributions on a support plus one bucket for the rest of the mass; the support is the teacher's k
            best at beta 0, the student's at beta 1, and their union in between
  policy    policy-gradient reverse KL: advantage = sampled - teacher log-prob, negated, times the probability ratio
The definitions are checked against hand-calculated values before anything is written.

usage: make_loss_fixtures.py        needs: torch, trl
"""
import torch
from trl.experimental.gkd import GKDTrainer

from fixture_io import FIXTURES, use_one_thread, write_json

TOKENS, VOCAB = 6, 40
TAIL_LIMIT = -1e-7  # log of the largest mass a support may have: the rest must keep a finite log


def jsd(student, teacher, beta, temperature=1.0):
    table = GKDTrainer.generalized_jsd_loss(
        student[None], teacher[None], beta=beta, temperature=temperature, reduction="none")
    return table[0].sum(-1)


def kl(log_a, log_b):
    return (log_a.exp() * (log_a - log_b)).sum(-1)


def mix(log_a, log_b, weight):
    weight = torch.tensor(weight, dtype=log_a.dtype)
    return torch.logaddexp(log_a + weight.log(), log_b + torch.log1p(-weight))


def divergence(log_q, log_p, beta):
    """The generalized JSD of log-distributions, with TRL's meaning of beta."""
    if beta == 0:
        return kl(log_p, log_q)
    if beta == 1:
        return kl(log_q, log_p)
    log_m = mix(log_p, log_q, beta)
    return beta * kl(log_p, log_m) + (1 - beta) * kl(log_q, log_m)


def skew(student, teacher, direction, alpha):
    log_q, log_p = student.log_softmax(-1), teacher.log_softmax(-1)
    if direction == "forward":
        return kl(log_p, mix(log_p, log_q, alpha))
    return kl(log_q, mix(log_q, log_p, alpha))


def top_k(student, teacher, k, beta, temperature=1.0):
    log_q, log_p = (student / temperature).log_softmax(-1), (teacher / temperature).log_softmax(-1)
    values = []
    for q, p in zip(log_q, log_p):
        best_p, best_q = p.topk(k).indices.tolist(), q.topk(k).indices.tolist()
        chosen = {0: best_p, 1: best_q}.get(beta, best_p + best_q)
        support = sorted(set(chosen))

        def with_tail(row):
            kept = row[support]
            tail = torch.log(-torch.expm1(kept.logsumexp(-1).clamp(max=TAIL_LIMIT)))
            return torch.cat([kept, tail[None]])

        values.append(divergence(with_tail(q), with_tail(p), beta))
    return torch.stack(values)


def policy(log_new, log_sampled, log_teacher):
    advantage = -(log_sampled - log_teacher)
    return -torch.exp(log_new - log_sampled) * advantage


def check_definitions():
    """The worked examples of the losses' published descriptions, to all the digits given."""
    z_s = torch.tensor([[1.0, -0.5, 0.25, 2.0]], dtype=torch.float64)
    z_t = torch.tensor([[0.5, 1.5, -1.0, 0.0]], dtype=torch.float64)

    def same(value, number):
        assert abs(value.sum().item() - number) < 2e-9, (value, number)

    for beta, t, number in [(0, 1, 1.227451304), (0.1, 2, 0.026873010), (0.5, 1, 0.225663131), (0.9, 0.9, 0.094456500),
                            (1, 1, 0.907620910), (1, 0.9, 1.080732314)]:
        same(jsd(z_s, z_t, beta, t), number)
        same(divergence((z_s / t).log_softmax(-1), (z_t / t).log_softmax(-1), beta), number)
    same(skew(z_s, z_t, "forward", 0.1), 0.803316776)
    same(skew(z_s, z_t, "reverse", 0.1), 0.709657316)
    for k, beta, number in [(1, 0, 1.130892963), (2, 0, 1.218572923), (1, 0.5, 0.221863672), (2, 0.5, 0.225663131),
                            (1, 1, 0.629693894), (2, 1, 0.726513318)]:
        same(top_k(z_s, z_t, k, beta), number)
    row = lambda *v: torch.tensor(v, dtype=torch.float64)
    same(policy(row(-1.2, -0.3, -2), row(-1.1, -0.35, -2), row(-0.7, -0.5, -3)), 0.795755697)


def case(student, value_of, **facts):
    """Evaluates one loss on fresh student logits: the facts, the values a token and the gradient of their sum."""
    leaf = student.clone().requires_grad_()
    value = value_of(leaf)
    (grad,) = torch.autograd.grad(value.sum(), leaf)
    assert value.shape == (TOKENS,) and grad.isfinite().all()
    return {**facts, "value": value, "grad": grad.flatten()}


def main():
    use_one_thread()
    check_definitions()
    generator = torch.Generator().manual_seed(20)
    draw = lambda *shape: torch.randn(*shape, generator=generator).double()
    student = (2 * draw(TOKENS, VOCAB)).float().double()
    # Close to the student in the first rows, far from it in the last: both ends of a run.
    distance = torch.linspace(0.2, 3.0, TOKENS, dtype=torch.float64)[:, None]
    teacher = (student + distance * draw(TOKENS, VOCAB)).float().double()
    sampler = student + 0.1 * draw(TOKENS, VOCAB)
    tokens = torch.multinomial(sampler.softmax(-1), 1, generator=generator)
    pick = lambda logits: logits.log_softmax(-1).gather(1, tokens)[:, 0]
    sampled, graded = pick(sampler).float().double(), pick(teacher).float().double()

    result = {"shape": [TOKENS, VOCAB], "student": student.flatten(), "teacher": teacher.flatten()}
    result["jsd"] = [
        case(student, lambda z: jsd(z, teacher, beta, t), beta=beta, temperature=t)
        for beta in (0, 0.1, 0.5, 0.9, 1) for t in (0.9, 1, 2)]
    result["skew"] = [
        case(student, lambda z: skew(z, teacher, d, 0.1), direction=d, alpha=0.1) for d in ("forward", "reverse")]
    result["top_k"] = [
        case(student, lambda z: top_k(z, teacher, k, beta, t), k=k, beta=beta, temperature=t)
        for k, beta, t in [(1, 0, 1), (1, 0.5, 1), (1, 1, 1), (5, 0, 1), (5, 0.5, 1), (5, 1, 1), (5, 0.5, 2)]]
    result["policy"] = [case(
        student, lambda z: policy(pick(z), sampled, graded), tokens=tokens[:, 0], sampled=sampled, teacher=graded)]
    path = FIXTURES / "losses.json"
    write_json(path, result)
    print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
