//! The most likely tokens, without sorting a vocabulary.

/// A token as one integer that sorts by falling logit, then by rising id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ranked(u64);

impl Ranked {
    pub(super) fn new(id: u32, logit: f32) -> Self {
        // IEEE 754 bits grow with the magnitude: flip negative numbers to make them grow with the value,
        // and everything once more to make them fall. -0.0 + 0.0 is +0.0, so that zeros tie.
        let bits = (logit + 0.0).to_bits();
        let rising = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
        Self(u64::from(!rising) << 32 | u64::from(id))
    }

    pub(super) fn id(self) -> u32 {
        self.0 as u32
    }
}

/// Fills `ranked` with all tokens, in id order.
pub(super) fn rank_all(ranked: &mut Vec<Ranked>, logits: &[f32]) {
    ranked.clear();
    ranked.extend((0..).zip(logits).map(|(id, &logit)| Ranked::new(id, logit)));
}

/// Moves the first `count` to the front, in order.
pub(super) fn sort_head(ranked: &mut [Ranked], count: usize) {
    if count < ranked.len() && count > 0 {
        ranked.select_nth_unstable(count - 1);
    }
    let count = count.min(ranked.len());
    ranked[..count].sort_unstable();
}

/// Length of the shortest prefix, in order of likelihood, whose `weight`s sum to at least `target`; that
/// prefix is in order afterwards. The head is sorted in growing pieces, since it is usually short.
pub(super) fn nucleus(ranked: &mut [Ranked], target: f64, weight: impl Fn(Ranked) -> f64) -> usize {
    let (mut done, mut sum, mut piece) = (0, 0.0, 64);
    while done < ranked.len() {
        let rest = &mut ranked[done..];
        let sorted = piece.min(rest.len());
        sort_head(rest, sorted);
        for (index, &token) in rest[..sorted].iter().enumerate() {
            sum += weight(token);
            if sum >= target {
                return done + index + 1;
            }
        }
        done += sorted;
        piece *= 8;
    }
    ranked.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_fall_with_the_logit_and_rise_with_the_id() {
        let logits = [-0.0, -1.5, f32::NEG_INFINITY, 3.0, 0.0, 1e-30, 3.0, -1e-30, f32::MAX];
        let mut ranked = Vec::new();
        rank_all(&mut ranked, &logits);
        sort_head(&mut ranked, logits.len());
        let order: Vec<u32> = ranked.into_iter().map(Ranked::id).collect();
        assert_eq!(order, [8, 3, 6, 5, 0, 4, 7, 1, 2]);
    }

    #[test]
    fn a_nucleus_is_the_shortest_sufficient_prefix() {
        let logits: Vec<f32> = (0..1000).map(|i| ((i * 37) % 1000) as f32).collect();
        for wanted in [1, 2, 63, 64, 65, 575, 576, 577, 1000] {
            let mut ranked = Vec::new();
            rank_all(&mut ranked, &logits);
            assert_eq!(nucleus(&mut ranked, wanted as f64, |_| 1.0), wanted);
            let head = ranked[..wanted].iter().map(|token| logits[token.id() as usize]);
            assert!(head.eq((0..wanted).map(|i| 999.0 - i as f32)));
        }
    }
}
