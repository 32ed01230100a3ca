//! Standard output. Who reads no further, as in `corebay volume list | head`, fails nothing.

use std::{
    fmt,
    io::{self, ErrorKind, Write},
};

macro_rules! print {
    ($($text:tt)*) => {
        $crate::output::print(format_args!($($text)*))
    };
}

macro_rules! println {
    () => {
        $crate::output::print(format_args!("\n"))
    };
    ($($text:tt)*) => {
        $crate::output::print(format_args!("{}\n", format_args!($($text)*)))
    };
}

/// Prints, where anybody reads it.
pub fn print(text: fmt::Arguments<'_>) {
    match io::stdout().lock().write_fmt(text) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
        printed => printed.expect("standard output takes what is printed"),
    }
}
