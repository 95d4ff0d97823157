//! How far a long job is: a bar on a terminal, otherwise a line every ten seconds.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Time between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Progress over a known number of units, shown on standard error.
pub struct Progress {
    what: String,
    unit: &'static str,
    total: u64,
    done: u64,
    start: Instant,
    started_at: u64,
    line: Instant,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Progress named `what` from `done` to `total` units, each of `unit`.
    pub fn new(what: &str, unit: &'static str, done: u64, total: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(total).with_position(done);
            let style = ProgressStyle::with_template("{prefix} {bar:28.cyan/blue} {percent:>3} % {msg}");
            if let Ok(style) = style {
                bar.set_style(style.progress_chars("━╸─"));
            }
            bar.set_prefix(what.to_owned());
            bar
        });
        let now = Instant::now();
        Self { what: what.to_owned(), unit, total, done, start: now, started_at: done, line: now, bar }
    }

    /// Notes that `done` units are done; `note` (for instance the loss) is shown with them.
    pub fn at(&mut self, done: u64, note: &str) {
        self.done = done;
        let message = || {
            let note = if note.is_empty() { String::new() } else { format!("{note}, ") };
            let left = (self.total - self.done) as f64 / self.rate();
            format!("{note}{:.0} {}/s, {} left", self.rate(), self.unit, clock(left))
        };
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            bar.set_message(message());
        } else if self.line.elapsed() >= LINE_EVERY {
            eprintln!("{} {}/{} {}: {}", self.what, done, self.total, self.unit, message());
            self.line = Instant::now();
        }
    }

    /// Prints a line above the bar.
    pub fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            None => eprintln!("{line}"),
        }
    }

    /// Units per second since the start.
    pub fn rate(&self) -> f64 {
        (self.done - self.started_at) as f64 / self.start.elapsed().as_secs_f64().max(1e-9)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
    }
}

/// Days, hours, minutes and seconds.
pub fn clock(seconds: f64) -> String {
    let s = seconds as u64;
    if s >= 86_400 {
        format!("{} days {}:{:02}:{:02}", s / 86_400, s / 3600 % 24, s / 60 % 60, s % 60)
    } else if s >= 3600 {
        format!("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60)
    } else {
        format!("{}:{:02}", s / 60, s % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_read_as_usual() {
        assert_eq!(clock(59.9), "0:59");
        assert_eq!(clock(754.0), "12:34");
        assert_eq!(clock(3.0 * 3600.0 + 61.0), "3:01:01");
        assert_eq!(clock(100_000.0), "1 days 3:46:40");
        assert_eq!(clock(f64::NAN), "0:00");
    }
}
