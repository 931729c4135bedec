//! What every command of ARLE shares: the terminal and progress, Ctrl-C, the lock of a folder, the device that was chosen, servers of
//! others, limits of numbers, and the one error type for values, files and folders that a user gave.

pub mod device;
pub mod endpoint;
mod error;
pub mod folder_lock;
pub mod interrupt;
pub mod limits;
pub mod parse_errors;
pub mod progress;
pub mod terminal;

pub use error::{Error, Result};
