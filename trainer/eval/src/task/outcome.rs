//! What grading a document's responses found.

use std::collections::BTreeMap;

use crate::stats::metric::MetricValue;

/// What grading found.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Grade {
    /// The answer that was read out of the response, by filter (`strict-match`, `none`, ...).
    pub extracted: BTreeMap<String, String>,
    /// The right answer.
    pub gold: String,
    /// Values by the metrics' keys (`exact_match,strict-match`).
    pub metrics: BTreeMap<String, MetricValue>,
}
