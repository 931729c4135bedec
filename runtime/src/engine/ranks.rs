//! The ranks that execute orders: this process's own, today.

use super::executor::{Executor, Outcome, StepOutcome};
use super::order::{Order, StepOrder};
use crate::Result;

/// Sends every order to every rank.
pub(super) struct Ranks {
    own: Executor,
    /// Orders sent.
    sent: u64,
    /// The own rank sees orders as other ranks do: decoded from bytes.
    encode: bool,
}

impl Ranks {
    pub(super) fn new(own: Executor, encode: bool) -> Self {
        Self { own, sent: 0, encode }
    }

    /// The own rank's executor, to look at.
    pub(super) fn own(&self) -> &Executor {
        &self.own
    }

    /// Executes an order; returns what it gave on the own rank.
    pub(super) fn send(&mut self, order: Order) -> Result<Outcome> {
        self.sent += 1;
        let order = if self.encode { Order::decode(&order.encode(self.sent)?, self.sent)? } else { order };
        self.own.execute(order)
    }

    /// Executes a step.
    pub(super) fn step(&mut self, step: StepOrder) -> Result<StepOutcome> {
        match self.send(Order::Step(step))? {
            Outcome::Step(outcome) => Ok(outcome),
            _ => unreachable!("a step has the outcome of a step"),
        }
    }
}
