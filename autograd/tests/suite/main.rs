//! What the ops promise, through the public API: equality with burn, finite differences, published losses, PyTorch.

mod adamw;
mod cuda;
mod cuda_decode;
mod deterministic;
mod errors;
mod fixtures;
mod gradients;
mod losses;
mod offload;
mod paged;
mod segments;
mod support;
mod table;
mod tape;
mod teacher_rows;
