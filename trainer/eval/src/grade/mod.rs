//! Graders that know a subject: pure functions from a response and the gold answer to what was read out of the response and
//! whether it is right. Patterns and choices need none; they are graded in `grading`.
//!
//! | module | for | conventions |
//! |---|---|---|
//! | [`boxed`] | mathematics | last `\boxed{}`, "Final Answer", the part after `</think>` |
//! | [`minerva`] | minerva_math500 | its normalisation, then equality as sympy's LaTeX reader sees it |
//! | [`hendrycks`] | hendrycks_math500, aime24 | its `is_equiv` on normalised strings |
//! | [`answer`] | `math_equal`, amc23 | equality of final answers as mathematics: intervals, sets, matrices, units |
//! | [`competition`] | aime24, amc23 | whole numbers with leading zeros, decimals |
//! | [`letter`] | multiple choice in a chat | the letter in a box, after "answer is", or on its own |
//!
//! [`minerva`] and [`hendrycks`] reproduce lm-evaluation-harness 0.4.13 on purpose, with what one may call its faults: `minerva` takes
//! `1,2` for `1`, and `hendrycks` compares unnormalised strings where its own code would have raised. Scores are comparable
//! only so. [`answer`] is ours and has no such habits; tasks report both.
//!
//! No function here panics, whatever the text; the fuzz tests beside them look for it.

pub mod answer;
pub mod boxed;
pub mod competition;
#[cfg(test)]
mod fixtures;
pub mod hendrycks;
pub mod latex;
pub mod letter;
pub mod minerva;
