//! `cargo xtask counts`: instructions of one embedding on this machine, under Valgrind, against the committed figures.
//!
//! Times on a shared machine differ from run to run by more than most changes gain; instruction counts do not, and a committed figure
//! catches a slower kernel on any machine. Counted is what `FUNCTION` of `nadir-count` executes: one `Encoder::embed`, nothing of
//! the start. Valgrind knows no AVX-512, hence counts are of the kernels in `KERNELS`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use nadir_formats::write_atomic;
use serde::{Deserialize, Serialize};

use crate::firmware::{Missing, print, root};

const VALGRIND: &str = "valgrind";
/// The function of `nadir-count` inside which instructions are counted.
const FUNCTION: &str = "counted_embed";
/// Kernels that are counted where the processor has them.
const KERNELS: [&str; 2] = ["scalar", "avx2"];
const MODELS: [&str; 6] =
    ["yocto-rgb-int8", "yocto-rgb-f16", "yocto-rgb-f32", "zepto-rgb-int8", "zepto-rgb-f16", "zepto-rgb-f32"];
/// What the tile holds: all zero, all maximum, the first sample.
const TILES: [&str; 3] = ["zero", "max", "real"];
/// A count may be this much higher than the committed one, in percent.
const TOLERANCE: f64 = 2.0;

/// The most by which the counts of the three tiles may differ, in percent of the least.
///
/// The integer engine takes the same instructions for every tile but for a few of the stem's first rows; the float engine computes
/// exponentials that branch on their argument.
fn spread_limit(model: &str) -> f64 {
    if model.ends_with("int8") { 0.01 } else { 1.0 }
}

/// Arguments of `cargo xtask counts`.
#[derive(clap::Args, Clone, Debug)]
pub struct Arguments {
    /// Write what was counted into benches/counts.json
    #[arg(long)]
    pub update: bool,
    /// Only these kernels: scalar, avx2
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub kernels: Option<Vec<String>>,
    /// Only these of the models/*.nadir
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub models: Option<Vec<String>>,
}

/// Instructions of one embedding.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Count {
    /// Multiply-accumulates of the model.
    pub macs: u64,
    /// Instructions, by what the tile holds: `zero`, `max`, `real`; of a board only `real`.
    pub instructions: BTreeMap<String, u64>,
    /// Instructions a multiply-accumulate, of the real tile: for the reader, computed from the other two.
    pub per_mac: f64,
}

impl Count {
    /// Of a model with so many multiply-accumulates.
    pub fn new(macs: u64, instructions: impl IntoIterator<Item = (&'static str, u64)>) -> Self {
        let instructions: BTreeMap<_, _> = instructions.into_iter().map(|(tile, n)| (tile.to_owned(), n)).collect();
        let real = instructions.get("real").copied().unwrap_or(0);
        Self { macs, instructions, per_mac: (real as f64 / macs.max(1) as f64 * 1e3).round() / 1e3 }
    }

    /// By how many percent of the least the counts of the tiles differ.
    pub fn spread(&self) -> f64 {
        let least = self.instructions.values().copied().min().unwrap_or(0);
        let most = self.instructions.values().copied().max().unwrap_or(0);
        100.0 * (most - least) as f64 / least.max(1) as f64
    }

    /// By how many percent this is above `before`: the worst of the tiles that both have.
    pub fn above(&self, before: &Self) -> Option<f64> {
        let both = self.instructions.iter().filter_map(|(tile, &now)| Some((now, *before.instructions.get(tile)?)));
        both.map(|(now, before)| 100.0 * (now as f64 / before.max(1) as f64 - 1.0)).max_by(f64::total_cmp)
    }
}

/// The committed figures, `benches/counts.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Book {
    /// What the file is.
    pub about: String,
    /// The compiler that made what was counted on the host: another one may give other counts.
    pub compiler: String,
    /// By kernels and model, as in `scalar yocto-rgb-int8`, counted by Valgrind on x86-64.
    pub host: BTreeMap<String, Count>,
    /// By board and model, as in `mps2-an500 yocto-rgb-int8`, counted by QEMU with `-icount`.
    pub boards: BTreeMap<String, Count>,
}

impl Book {
    /// Where it is.
    pub fn path() -> PathBuf {
        root().join("benches/counts.json")
    }

    /// An empty one.
    pub fn empty() -> Self {
        Self {
            about: "Instructions of one embedding; written by `cargo xtask counts --update`, see benches/README.md"
                .into(),
            compiler: String::new(),
            host: BTreeMap::new(),
            boards: BTreeMap::new(),
        }
    }

    /// Reads the file.
    ///
    /// # Errors
    /// If it is not there or holds something else.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        serde_json::from_str(&text).with_context(|| path.display().to_string())
    }

    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        Ok(write_atomic(path, text.as_bytes())?)
    }
}

/// Holds `now` against the committed figure `before`: the last columns of its line, and whether it fails.
///
/// `spread` is the most by which the tiles may differ, in percent.
pub fn verdict(now: &Count, before: Option<&Count>, spread: f64) -> (String, bool) {
    let (mut text, mut bad) = match before.and_then(|before| now.above(before)) {
        None => ("no committed figure".to_owned(), false),
        Some(above) if above > TOLERANCE => (format!("{above:+.2} %, MORE THAN {TOLERANCE} % WORSE"), true),
        Some(above) => (format!("{above:+.2} %"), false),
    };
    match now.spread() {
        0.0 => text += ", equal for all tiles",
        found if found > spread => {
            let _ = write!(text, ", DIFFERS BY {found:.3} % BETWEEN TILES, LIMIT {spread} %");
            bad = true;
        }
        found => {
            let _ = write!(text, ", differs by {found:.3} % between tiles");
        }
    }
    (text, bad)
}

/// Counts, prints the table, and compares or writes.
///
/// # Errors
/// [`Missing`] if Valgrind is; if something fails; or if a count is worse than its limit.
pub fn main(arguments: &Arguments) -> Result<()> {
    check_valgrind()?;
    ensure!(cfg!(target_arch = "x86_64"), "the committed counts are of x86-64; this processor is another");
    let program = build()?;
    let path = Book::path();
    let mut book = if path.exists() { Book::read(&path)? } else { Book::empty() };
    let compiler = compiler()?;
    if !arguments.update && book.compiler != compiler {
        print(&format!("NOTE: the committed counts are of {:?}, this is {compiler:?}\n", book.compiler))?;
    }

    let here = kernels_here(&program)?;
    let wanted = selection(&KERNELS, arguments.kernels.as_deref(), "kernels")?;
    let models = selection(&MODELS, arguments.models.as_deref(), "model")?;
    let mut jobs = vec![];
    for kernels in &wanted {
        if here.iter().any(|name| name == kernels) {
            jobs.extend(models.iter().flat_map(|&model| TILES.map(|tile| (*kernels, model, tile))));
        } else {
            print(&format!("NOT COUNTED: {kernels} kernels cannot be chosen under Valgrind here\n"))?;
        }
    }
    let counted = in_parallel(&jobs, |&(kernels, model, tile)| count(&program, kernels, model, tile))?;

    let mut text =
        format!("{:<24} {:>14} {:>8}  against the committed figure\n", "kernels, model", "instructions", "per MAC");
    let mut failed = vec![];
    for (job, counts) in jobs.chunks_exact(TILES.len()).zip(counted.chunks_exact(TILES.len())) {
        let (kernels, model, _) = job[0];
        let key = format!("{kernels} {model}");
        let now = Count::new(counts[0].0, TILES.into_iter().zip(counts.iter().map(|&(_, n)| n)));
        let (words, bad) = verdict(&now, book.host.get(&key), spread_limit(model));
        let _ = writeln!(text, "{key:<24} {:>14} {:>8.3}  {words}", now.instructions["real"], now.per_mac);
        if bad {
            failed.push(key.clone());
        }
        if arguments.update {
            book.host.insert(key, now);
        }
    }
    print(&text)?;
    if arguments.update {
        book.compiler = compiler;
        book.write(&path)?;
        return print(&format!("wrote {}\n", path.display()));
    }
    ensure!(failed.is_empty(), "worse than committed: {}", failed.join(", "));
    Ok(())
}

/// Those of `all` that were asked for, in order.
fn selection(all: &[&'static str], asked: Option<&[String]>, what: &str) -> Result<Vec<&'static str>> {
    let Some(asked) = asked else { return Ok(all.to_vec()) };
    asked
        .iter()
        .map(|name| {
            let found = all.iter().find(|known| *known == name).copied();
            found.with_context(|| format!("no {what} {name} is counted; there are: {}", all.join(", ")))
        })
        .collect()
}

fn check_valgrind() -> Result<()> {
    let status = Command::new(VALGRIND).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        _ => Err(Missing(format!(
            "{VALGRIND} is not installed, NO INSTRUCTIONS WERE COUNTED: apt install valgrind (Debian, Ubuntu) or dnf install \
             valgrind (Fedora)"
        ))
        .into()),
    }
}

/// Builds `nadir-count` in release mode.
fn build() -> Result<PathBuf> {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--release", "--quiet", "--package", "nadir-benches", "--bin", "nadir-count"])
        .arg("--message-format=json-render-diagnostics")
        .current_dir(root())
        // Flags for one processor would count something else than what is shipped.
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .stderr(Stdio::inherit())
        .output()
        .context("cargo cannot be started")?;
    ensure!(output.status.success(), "nadir-count does not build");
    let text = String::from_utf8_lossy(&output.stdout);
    let messages = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let mut executables = messages.filter_map(|message| message["executable"].as_str().map(PathBuf::from));
    executables.next_back().context("cargo did not say where nadir-count is")
}

fn compiler() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output =
        Command::new(rustc).arg("--version").current_dir(root()).output().context("rustc cannot be started")?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The kernels that can be chosen on the processor that Valgrind imitates.
fn kernels_here(program: &Path) -> Result<Vec<String>> {
    let output = Command::new(VALGRIND)
        .args(["--quiet", "--tool=none"])
        .arg(program)
        .arg("--list-kernels")
        .output()
        .context(VALGRIND)?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
}

/// Multiply-accumulates of the model, and instructions for one tile.
fn count(program: &Path, kernels: &str, model: &str, tile: &str) -> Result<(u64, u64)> {
    let out = tempfile::NamedTempFile::new().context("a file for callgrind")?;
    let mut file = std::ffi::OsString::from("--callgrind-out-file=");
    file.push(out.path());
    let output = Command::new(VALGRIND)
        .args(["--quiet", "--tool=callgrind", &format!("--toggle-collect=*{FUNCTION}*")])
        .arg(file)
        .arg(program)
        .arg(root().join("models").join(format!("{model}.nadir")))
        .args(["--kernels", kernels, "--tile", tile, "--tiles"])
        .arg(root().join("samples/eurosat-rgb/tiles.npy"))
        .output()
        .context(VALGRIND)?;
    let what = format!("{kernels} {model}, tile {tile}");
    ensure!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr).trim());
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let macs = said.split_whitespace().next().and_then(|n| n.parse().ok());
    let macs = macs.with_context(|| format!("{what}: nadir-count said {said:?}"))?;
    let profile = std::fs::read_to_string(out.path()).context("callgrind's output")?;
    Ok((macs, total(&profile).with_context(|| what)?))
}

/// The instructions in callgrind's output.
fn total(profile: &str) -> Result<u64> {
    let line = profile.lines().find_map(|line| line.strip_prefix("totals:")).context("callgrind wrote no total")?;
    match line.trim().parse() {
        Ok(0) => bail!("callgrind counted nothing: has {FUNCTION} another name?"),
        Ok(n) => Ok(n),
        Err(_) => bail!("callgrind's total is {line:?}"),
    }
}

/// Does every job, as many at once as there are processors; results in the order of the jobs.
fn in_parallel<J: Sync, R: Send>(jobs: &[J], work: impl Fn(&J) -> Result<R> + Sync) -> Result<Vec<R>> {
    let next = AtomicUsize::new(0);
    let workers = thread::available_parallelism().map_or(1, usize::from).min(jobs.len());
    let mut results: Vec<(usize, Result<R>)> = thread::scope(|scope| {
        let one = || {
            let mut done = vec![];
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(job) = jobs.get(index) else { return done };
                done.push((index, work(job)));
            }
        };
        let handles: Vec<_> = (0..workers).map(|_| scope.spawn(one)).collect();
        handles.into_iter().flat_map(|handle| handle.join().expect("a worker does not panic")).collect()
    });
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three(zero: u64, max: u64, real: u64) -> Count {
        Count::new(50, [("zero", zero), ("max", max), ("real", real)])
    }

    #[test]
    fn more_than_two_percent_worse_fails_and_better_does_not() {
        let before = three(1000, 1000, 1000);
        assert_eq!(before.per_mac, 20.0);
        assert_eq!(
            verdict(&three(1019, 1019, 1019), Some(&before), 0.0),
            ("+1.90 %, equal for all tiles".into(), false)
        );
        assert!(verdict(&three(1021, 1021, 1021), Some(&before), 0.0).1);
        assert!(!verdict(&three(500, 500, 500), Some(&before), 0.0).1);
        // One tile alone is enough.
        assert!(verdict(&three(900, 1030, 900), Some(&before), 99.0).1);
        assert!(!verdict(&before, None, 0.0).1);
    }

    #[test]
    fn a_count_that_depends_on_the_data_fails() {
        let now = three(1000, 1002, 1001);
        assert!((now.spread() - 0.2).abs() < 1e-9);
        assert!(verdict(&now, Some(&now), 0.1).1);
        assert!(!verdict(&now, Some(&now), 0.2001).1);
        // A board has one figure only.
        let board = Count::new(50, [("real", 7)]);
        assert_eq!((board.spread(), board.above(&three(1, 1, 7))), (0.0, Some(0.0)));
    }

    #[test]
    fn totals_are_read_and_nothing_counted_is_an_error() {
        assert_eq!(total("version: 1\nsummary: 12\ntotals: 12\n").unwrap(), 12);
        assert!(total("totals: 0\n").unwrap_err().to_string().contains(FUNCTION));
        assert!(total("summary: 1\n").is_err());
    }

    #[test]
    fn the_committed_figures_can_be_read_and_written() {
        let book = Book::read(&Book::path()).unwrap();
        assert!(book.host.keys().all(|key| {
            let (kernels, model) = key.split_once(' ').unwrap();
            KERNELS.contains(&kernels) && MODELS.contains(&model)
        }));
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join("counts.json");
        book.write(&copy).unwrap();
        assert_eq!(Book::read(&copy).unwrap(), book);
        assert_eq!(std::fs::read_to_string(copy).unwrap(), std::fs::read_to_string(Book::path()).unwrap());
    }

    #[test]
    fn jobs_keep_their_order_and_their_errors() {
        let jobs: Vec<u32> = (0..50).collect();
        assert_eq!(in_parallel(&jobs, |&n| Ok(n + 1)).unwrap(), (1..51).collect::<Vec<_>>());
        assert!(in_parallel(&jobs, |&n| if n == 7 { bail!("seven") } else { Ok(()) }).is_err());
        assert!(selection(&KERNELS, Some(&["mmx".into()]), "kernels").is_err());
    }
}
