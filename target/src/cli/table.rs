//! Plain tables for people.

/// Columns of text, each as wide as its widest cell. The first row is the heading.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
    /// Columns whose cells are numbers.
    right: Vec<bool>,
}

impl Table {
    /// A table with this heading; a heading that begins with `>` aligns its column to the right.
    pub fn new(heading: &[&str]) -> Self {
        Self {
            right: heading.iter().map(|cell| cell.starts_with('>')).collect(),
            rows: vec![
                heading
                    .iter()
                    .map(|cell| cell.trim_start_matches('>').to_owned())
                    .collect(),
            ],
        }
    }

    /// Adds a row of as many cells as the heading has.
    pub fn row(&mut self, cells: Vec<String>) {
        assert_eq!(cells.len(), self.right.len(), "a cell for each column");
        self.rows.push(cells);
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let widths: Vec<usize> = (0..self.right.len())
            .map(|column| {
                let cells = self.rows.iter().map(|row| row[column].chars().count());
                cells.max().unwrap_or(0)
            })
            .collect();
        for row in &self.rows {
            let mut line = String::new();
            for ((cell, width), right) in row.iter().zip(&widths).zip(&self.right) {
                if !line.is_empty() {
                    line.push_str("  ");
                }
                if *right {
                    line.push_str(&format!("{cell:>width$}"));
                } else {
                    line.push_str(&format!("{cell:<width$}"));
                }
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&["name", ">count"]);
        table.row(vec!["a".into(), "12345678".into()]);
        table.row(vec!["longer".into(), "1".into()]);
        let expected = "name       count\na       12345678\nlonger         1\n";
        assert_eq!(table.to_string(), expected);
    }
}
