//! Log-probabilities of one position from its logits, in double precision.

use crate::request::{LogProbs, SequenceScores};

impl LogProbs {
    /// The results of a position with logits `z` whose own token is `target`.
    pub(super) fn of_row(&self, z: &[f32], target: u32) -> SequenceScores {
        // At temperature 1 these are the roundings of the sampler, so that both give one token the same number.
        let max = z.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = z.iter().map(|&v| (f64::from(v - max) / self.temperature).exp()).sum();
        let log_sum = f64::from(max) / self.temperature + sum.ln();
        let logprob = |id: u32| f64::from(z[id as usize]) / self.temperature - log_sum;
        let mut scores = SequenceScores { logprobs: vec![logprob(target)], ..SequenceScores::default() };
        if !self.ids.is_empty() {
            scores.ids.push(self.ids.iter().map(|&id| logprob(id)).collect());
        }
        if self.greedy {
            scores.greedy.push(z.iter().all(|&other| other <= z[target as usize]));
        }
        if self.ranks {
            scores.ranks.push(rank(z, target));
        }
        if self.top > 0 {
            let mut order: Vec<u32> = (0..z.len() as u32).collect();
            let before = |a: &u32, b: &u32| z[*b as usize].total_cmp(&z[*a as usize]).then(a.cmp(b));
            if self.top < order.len() {
                order.select_nth_unstable_by(self.top - 1, before);
            }
            // By addition: one minus the rest would cancel.
            scores.tail_logprobs.push(order[self.top..].iter().map(|&id| logprob(id).exp()).sum::<f64>().ln());
            order.truncate(self.top);
            order.sort_unstable_by(before);
            scores.top.push(order.into_iter().map(|id| (id, logprob(id))).collect());
        }
        scores
    }
}

/// A token's place by falling logit, ties by rising id, from 1.
fn rank(z: &[f32], target: u32) -> u32 {
    let (lower, own) = (target as usize, z[target as usize]);
    let likelier = z.iter().filter(|&&other| other > own).count();
    let equal = z[..lower].iter().filter(|&&other| other == own).count();
    (1 + likelier + equal) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_places_in_the_list_of_the_likeliest() {
        let z = [0.5, 2.0, -1.0, 2.0, f32::NEG_INFINITY, 0.5, 3.0, f32::NEG_INFINITY];
        let output = LogProbs { top: z.len(), temperature: 0.7, ranks: true, ..LogProbs::default() };
        for target in 0..z.len() as u32 {
            let scores = output.of_row(&z, target);
            assert_eq!(scores.top[0][scores.ranks[0] as usize - 1].0, target);
        }
    }
}
