//! Whole-program tests: the real binaries as processes, on tiny models.

mod adapter;
mod bad_files;
mod bench;
mod best;
mod checkpoint;
mod command_line;
mod data;
mod eval;
mod going_on;
mod inputs;
mod interrupts;
mod memory;
mod no_files;
mod recipes;
mod refusals;
mod resume;
mod serve;
mod support;
mod teacher;
mod training;
mod usage;
mod vocabulary;
