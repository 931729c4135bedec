//! What logits say of one position, in double precision.

/// What is asked of a row of logits.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    /// So many of the most likely tokens.
    pub(crate) top: usize,
    /// These tokens besides.
    pub(crate) ids: Vec<u32>,
    /// Of the distribution at this temperature.
    pub(crate) temperature: f64,
    /// Also the rank of the position's own token.
    pub(crate) ranks: bool,
    /// Whether no token is likelier than the position's own.
    pub(crate) greedy: bool,
}

/// What is said of one position.
#[derive(Debug, Default)]
pub(crate) struct Row {
    /// Of the position's own token.
    pub(crate) logprob: f64,
    /// Its place among all tokens, from 1.
    pub(crate) rank: u32,
    /// The most likely tokens, the likeliest first (ties to the lower id).
    pub(crate) top: Vec<(u32, f64)>,
    /// ln of the mass of all others.
    pub(crate) tail: f64,
    /// Of the ids that were asked for.
    pub(crate) ids: Vec<f64>,
    /// Whether no token is likelier than the position's own.
    pub(crate) greedy: bool,
}

impl Asked {
    /// The answer for a position with logits `z` whose own token is `target`.
    pub(super) fn row(&self, z: &[f32], target: u32) -> Row {
        // At temperature 1 these are the roundings of the sampler, so that both give one token the same number.
        let max = z.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = z.iter().map(|&v| (f64::from(v - max) / self.temperature).exp()).sum();
        let log_sum = f64::from(max) / self.temperature + sum.ln();
        let logprob = |id: u32| f64::from(z[id as usize]) / self.temperature - log_sum;
        let ids = self.ids.iter().map(|&id| logprob(id)).collect();
        let greedy = self.greedy && z.iter().all(|&other| other <= z[target as usize]);
        let mut row = Row { logprob: logprob(target), ids, greedy, ..Row::default() };
        if self.ranks {
            row.rank = rank(z, target);
        }
        if self.top > 0 {
            let mut order: Vec<u32> = (0..z.len() as u32).collect();
            let before = |a: &u32, b: &u32| z[*b as usize].total_cmp(&z[*a as usize]).then(a.cmp(b));
            if self.top < order.len() {
                order.select_nth_unstable_by(self.top - 1, before);
            }
            // By addition: one minus the rest would cancel.
            row.tail = order[self.top..].iter().map(|&id| logprob(id).exp()).sum::<f64>().ln();
            order.truncate(self.top);
            order.sort_unstable_by(before);
            row.top = order.into_iter().map(|id| (id, logprob(id))).collect();
        }
        row
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
        let asked = Asked { top: z.len(), ids: vec![], temperature: 0.7, ranks: true, greedy: false };
        for target in 0..z.len() as u32 {
            let row = asked.row(&z, target);
            assert_eq!(row.top[row.rank as usize - 1].0, target);
        }
    }
}
