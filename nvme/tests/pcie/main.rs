//! The driver against the emulated controller: good ones, slow ones, broken ones, hostile ones.

mod bring_up;
mod faults;
mod hostile;
mod io;
mod world;
