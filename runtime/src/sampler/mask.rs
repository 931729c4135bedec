//! Which tokens are possible.

/// Which tokens a generation may continue with, decided by all before them: the grammar of structured output.
///
/// The generation's steps wait for its tokens, so it gets at most every other step of an engine that is ahead of them.
pub trait TokenMask: Send + Sync {
    /// Sets the bits of the tokens that may come next: token t is bit `t % 32` of word `t / 32`. All are 0 before.
    fn allowed(&mut self, bits: &mut [u32]);

    /// This token was sampled.
    fn accept(&mut self, token: u32);
}
