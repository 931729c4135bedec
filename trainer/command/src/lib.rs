//! What every command of ARLE shares: the terminal and progress, Ctrl-C, the lock of a folder, the device that was chosen, servers of
//! others, limits of numbers, and the one error type for values, files and folders that a user gave.
//!
//! ```
//! use command::endpoint::TEACHER;
//!
//! assert_eq!(TEACHER.root("https://gpu-2:8000/v1/").expect("an address"), "https://gpu-2:8000");
//! let error = TEACHER.root("gpu-2:8000").expect_err("no scheme");
//! assert!(error.to_string().contains("`teacher.url`"));
//! ```

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
