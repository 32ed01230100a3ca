//! Owns how tables are printed: columns as wide as what is in them, numbers to the right.

/// Rows of cells under a head.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table.
    pub fn new(head: &[&str]) -> Self {
        let head = head.iter().map(|cell| (*cell).to_owned()).collect();
        Self { rows: vec![head] }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// The table as Markdown, which is also readable as it is.
    pub fn markdown(&self) -> String {
        let columns = self.rows[0].len();
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for (index, row) in self.rows.iter().enumerate() {
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                text += &match column {
                    0 => format!("| {cell:<width$} "),
                    _ => format!("| {cell:>width$} "),
                };
            }
            text += "|\n";
            if index == 0 {
                for (column, width) in widths.iter().enumerate() {
                    let line = "-".repeat(*width);
                    text += &match column {
                        0 => format!("| {line} "),
                        _ => format!("| {}: ", &line[1..]),
                    };
                }
                text += "|\n";
            }
        }
        text
    }
}

/// The median; NaN of nothing.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().filter(|v| !v.is_nan()).collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

/// The command that made a table, as it can be given again.
pub fn command_line() -> String {
    let mut words: Vec<String> = std::env::args().skip(1).collect();
    // Where the program lies differs from machine to machine; `cargo xtask` fills it in.
    if let Some(at) = words.iter().position(|word| word == "--corebay") {
        words.drain(at..(at + 2).min(words.len()));
    }
    format!("cargo xtask bench {}", words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([1.0, f64::NAN, 2.0]), 1.5);
        assert!(median([]).is_nan());
    }

    #[test]
    fn a_table_lines_up() {
        let mut table = Table::new(&["load", "IOPS"]);
        table.row(vec!["read".into(), "123456".into()]);
        let expected = "| load |   IOPS |\n| ---- | -----: |\n| read | 123456 |\n";
        assert_eq!(table.markdown(), expected);
    }
}
