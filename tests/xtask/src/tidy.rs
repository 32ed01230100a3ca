//! Owns the house rules that no compiler knows: lengths of files and functions, forbidden words.

use std::fs;

use anyhow::{Context, Result, ensure};

use crate::shell;
use crate::tally::Tally;

const FILE_LINES_MAX: usize = 1_000;
/// Lines of code in one function, without blank lines and comments.
const FUNCTION_LINES_MAX: usize = 80;

/// A source file.
struct Source {
    path: String,
    text: String,
}

/// A rule: its name, and what breaks it in one file.
type Rule = (&'static str, fn(&Source) -> Vec<String>);

const RULES: &[Rule] = &[
    ("file_length", long_files),
    ("function_length", long_functions),
    ("forbidden_words", forbidden_words),
    ("module_docs", undocumented_modules),
    ("stray_tests", stray_tests),
];

/// Checks every file that is, or would be, committed.
pub fn run() -> Result<Tally> {
    let sources = sources()?;
    let mut tally = Tally::default();
    for (name, rule) in RULES {
        let mut broken = Vec::new();
        for source in &sources {
            broken.extend(
                rule(source)
                    .into_iter()
                    .map(|what| format!("{}:{what}", source.path)),
            );
        }
        println!(
            "tidy::{name} ... {}",
            if broken.is_empty() { "ok" } else { "FAILED" }
        );
        broken.iter().for_each(|line| println!("  {line}"));
        tally += Tally::one(broken.is_empty());
    }
    Ok(tally)
}

fn sources() -> Result<Vec<Source>> {
    let mut list = shell::command("git");
    list.args([
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]);
    let output = list.output().context("start git")?;
    ensure!(
        output.status.success(),
        "git ls-files: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let root = shell::root();
    let mut sources = Vec::new();
    for path in String::from_utf8_lossy(&output.stdout).split_terminator('\0') {
        // Not text, or removed and not committed yet: nothing to check.
        if let Ok(text) = fs::read_to_string(root.join(path)) {
            sources.push(Source {
                path: path.to_owned(),
                text,
            });
        }
    }
    Ok(sources)
}

impl Source {
    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }
}

fn long_files(source: &Source) -> Vec<String> {
    let lines = source.text.lines().count();
    let long = source.is_rust() && lines > FILE_LINES_MAX;
    long.then(|| format!("1: {lines} lines, at most {FILE_LINES_MAX}"))
        .into_iter()
        .collect()
}

/// Relies on the formatter: a function ends at the closing brace of its own indentation.
fn long_functions(source: &Source) -> Vec<String> {
    let mut broken = Vec::new();
    if !source.is_rust() {
        return broken;
    }
    let lines: Vec<&str> = source.text.lines().collect();
    for (start, line) in lines.iter().enumerate() {
        let indent = &line[..line.len() - line.trim_start().len()];
        if !starts_function(line.trim_start()) {
            continue;
        }
        let end = format!("{indent}}}");
        let declaration_end = format!("{indent};");
        let body = lines[start..]
            .iter()
            .take_while(|line| **line != end && **line != declaration_end);
        let code = body.filter(|line| {
            let line = line.trim_start();
            !line.is_empty() && !line.starts_with("//")
        });
        let count = code.count();
        if count > FUNCTION_LINES_MAX && ends_with_brace(&lines[start..], indent) {
            let most = FUNCTION_LINES_MAX;
            broken.push(format!(
                "{}: a function of {count} lines, at most {most}",
                start + 1
            ));
        }
    }
    broken
}

fn starts_function(line: &str) -> bool {
    const BEFORE: &[&str] = &[
        "pub",
        "pub(crate)",
        "pub(super)",
        "const",
        "async",
        "unsafe",
        "extern",
    ];
    for word in line.split_whitespace() {
        if word == "fn" {
            return true;
        }
        if !BEFORE.contains(&word) && !word.starts_with("pub(") && !word.starts_with('"') {
            return false;
        }
    }
    false
}

/// Whether the item that starts here has a body: a signature that ends in `;` has none.
fn ends_with_brace(lines: &[&str], indent: &str) -> bool {
    let own = |line: &&&str| line.len() - line.trim_start().len() == indent.len();
    let closing = lines
        .iter()
        .filter(own)
        .find(|line| line.ends_with(['{', ';']));
    closing.is_some_and(|line| line.ends_with('{'))
}

/// Paths of one machine and hosts of package registries have no place in the repository.
fn forbidden_words(source: &Source) -> Vec<String> {
    // In pieces, so that this file does not hold them. Cargo writes the lock file.
    let words = [
        ["/wo", "rk/"].concat(),
        ["/ro", "ot/"].concat(),
        ["/fa", "rm/"].concat(),
        ["debian", ".org"].concat(),
        ["crates", ".io"].concat(),
        ["npm", "js"].concat(),
        ["pypi", ".org"].concat(),
    ];
    if source.path == "Cargo.lock" {
        return Vec::new();
    }
    let mut broken = Vec::new();
    for (number, line) in source.text.lines().enumerate() {
        for word in words.iter().filter(|word| line.contains(word.as_str())) {
            broken.push(format!("{}: names {word:?}", number + 1));
        }
    }
    broken
}

fn undocumented_modules(source: &Source) -> Vec<String> {
    let documented = source.text.starts_with("//!");
    let broken = source.is_rust() && !documented;
    broken
        .then(|| "1: the first line does not say what the module owns".into())
        .into_iter()
        .collect()
}

/// Where a crate's tests are one program, `tests/main.rs`, a file beside it that it does not name is
/// never compiled.
fn stray_tests(source: &Source) -> Vec<String> {
    let Some(folder) = source.path.strip_suffix("/tests/main.rs") else {
        return Vec::new();
    };
    let files = fs::read_dir(shell::root().join(folder).join("tests"));
    let names = files.into_iter().flatten().flatten();
    let names = names.map(|file| file.file_name().to_string_lossy().into_owned());
    let stray = names.filter(|name| is_stray(&source.text, name));
    stray
        .map(|name| format!("1: does not name the module in {name}"))
        .collect()
}

fn is_stray(main: &str, file: &str) -> bool {
    let Some(module) = file.strip_suffix(".rs").filter(|name| *name != "main") else {
        return false;
    };
    let declaration = format!("mod {module};");
    !main.lines().any(|line| line == declaration)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_file_that_no_program_names_is_stray() {
        let main = "//! All tests.\n\nmod crash;\nmod support;\n";
        assert!(!is_stray(main, "crash.rs"));
        assert!(!is_stray(main, "main.rs"));
        assert!(!is_stray(main, "support"));
        assert!(is_stray(main, "crashes.rs"));
        assert!(is_stray(main, "ash.rs"));
    }

    fn rust(text: String) -> Source {
        Source {
            path: "a.rs".into(),
            text,
        }
    }

    #[test]
    fn a_long_function_is_found_by_its_code() {
        let body = |lines: usize| "        call();\n        // why\n\n".repeat(lines);
        let function = |lines| {
            format!(
                "impl A {{\n    pub async fn f() {{\n{}    }}\n}}\n",
                body(lines)
            )
        };
        assert!(long_functions(&rust(function(79))).is_empty());
        let broken = long_functions(&rust(function(80)));
        assert_eq!(broken, ["2: a function of 81 lines, at most 80"]);
    }

    #[test]
    fn a_declaration_has_no_length() {
        let text = format!(
            "trait A {{\n    fn f();\n{}}}\n",
            "    fn g() {}\n".repeat(100)
        );
        assert!(long_functions(&rust(text)).is_empty());
    }

    #[test]
    fn a_long_file_is_found() {
        assert!(long_files(&rust("x\n".repeat(1_000))).is_empty());
        assert_eq!(long_files(&rust("x\n".repeat(1_001))).len(), 1);
    }

    #[test]
    fn forbidden_words_are_found_with_their_line() {
        let text = format!("fine\nsee {}notes\n", ["/wo", "rk/"].concat());
        let source = Source {
            path: "README.md".into(),
            text,
        };
        assert_eq!(forbidden_words(&source).len(), 1);
        assert!(forbidden_words(&source)[0].starts_with("2:"));
    }
}
