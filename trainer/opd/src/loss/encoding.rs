//! Losses as bytes, for ranks of other processes: a tag, numbers, and of a loss that wraps another one the bytes of that.

use std::sync::Arc;

use autograd::ops::{Distill, Divergence};
use runtime::train::{Loss, TrainError};

use super::{CrossEntropy, Distillation, HeldOut, Mismatch, PolicyGradient};

/// What the bytes of a loss begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Tag {
    CrossEntropy,
    PolicyGradient,
    HeldOut,
    Mismatch,
    Jsd,
    SkewedForward,
    SkewedReverse,
    TopK,
}

impl Tag {
    const ALL: [Self; 8] = [
        Self::CrossEntropy,
        Self::PolicyGradient,
        Self::HeldOut,
        Self::Mismatch,
        Self::Jsd,
        Self::SkewedForward,
        Self::SkewedReverse,
        Self::TopK,
    ];
}

/// The bytes of a loss.
pub(super) fn encode(tag: Tag, numbers: &[f64]) -> Vec<u8> {
    std::iter::once(tag as u8).chain(numbers.iter().flat_map(|number| number.to_le_bytes())).collect()
}

/// The loss that wrote these bytes.
///
/// # Errors
/// Bytes that no loss writes.
pub fn decode(bytes: &[u8]) -> runtime::Result<Arc<dyn Loss>> {
    let unknown = TrainError::UnknownLoss { bytes: bytes.len() };
    Ok(known(bytes).ok_or(unknown)?)
}

fn known(bytes: &[u8]) -> Option<Arc<dyn Loss>> {
    let (&tag, content) = bytes.split_first()?;
    let tag = Tag::ALL.into_iter().find(|known| *known as u8 == tag)?;
    let (numbers, rest) = content.as_chunks::<8>();
    let numbers: Vec<f64> = numbers.iter().map(|&bytes| f64::from_le_bytes(bytes)).collect();
    let distillation = |divergence, temperature| -> Option<Arc<dyn Loss>> {
        Some(Arc::new(Distillation(Distill { divergence, temperature })))
    };
    if tag == Tag::Mismatch {
        let inner = known(content.get(8..)?)?;
        return Some(Arc::new(Mismatch::new(inner, *numbers.first()?)));
    }
    match (tag, &numbers[..], rest) {
        (Tag::CrossEntropy, [], []) => Some(Arc::new(CrossEntropy)),
        (Tag::HeldOut, [], []) => Some(Arc::new(HeldOut)),
        (Tag::PolicyGradient, &[coef, temperature], []) => Some(Arc::new(PolicyGradient { coef, temperature })),
        (Tag::Jsd, &[temperature, beta], []) => distillation(Divergence::Jsd { beta }, temperature),
        (Tag::SkewedForward, &[temperature, alpha], []) => {
            distillation(Divergence::SkewedForward { alpha }, temperature)
        }
        (Tag::SkewedReverse, &[temperature, alpha], []) => {
            distillation(Divergence::SkewedReverse { alpha }, temperature)
        }
        (Tag::TopK, &[temperature, beta, k], []) => distillation(Divergence::TopK { k: k as usize, beta }, temperature),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_comes_back_from_its_bytes_and_other_bytes_are_refused() {
        let divergences = [
            Divergence::Jsd { beta: 0.1 },
            Divergence::SkewedForward { alpha: 0.3 },
            Divergence::SkewedReverse { alpha: 0.7 },
            Divergence::TopK { k: 50, beta: 0.5 },
        ];
        let mut losses: Vec<Arc<dyn Loss>> = vec![
            Arc::new(CrossEntropy),
            Arc::new(HeldOut),
            Arc::new(PolicyGradient { coef: 0.7, temperature: 1.1 }),
            Arc::new(Mismatch::new(Arc::new(PolicyGradient { coef: 2.0, temperature: 0.9 }), 0.9)),
        ];
        losses.extend(
            divergences
                .map(|divergence| Arc::new(Distillation(Distill { divergence, temperature: 1.3 })) as Arc<dyn Loss>),
        );
        for loss in &losses {
            let bytes = loss.encode();
            let again = decode(&bytes).expect("a loss");
            assert_eq!((again.encode(), again.needs()), (bytes.clone(), loss.needs()));
            assert!(decode(&bytes[..bytes.len() - 1]).is_err() && decode(&[&bytes[..], &[0]].concat()).is_err());
        }
        let mut all: Vec<Vec<u8>> = losses.iter().map(|loss| loss.encode()).collect();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), losses.len());
        assert!(decode(&[200]).is_err() && decode(&[]).is_err());
    }
}
