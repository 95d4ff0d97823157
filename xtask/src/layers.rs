//! `cargo xtask layers BOARD`: the hash of every place of five models on an emulated microcontroller, against
//! `tests/conformance/kernels.csv`, which `quantize verify-kernels` checks on this machine.
//!
//! Models and tiles are loaded into the board's PSRAM, so that each model fits each board.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use nadir_quantize::conformance::{Case, FIRST, MODELS, TABLE, TILES, Table};

use crate::emulator::{self, Loaded};
use crate::firmware::{BOARDS, Board, build_program, check_target, default_model, print, root};
use crate::qemu::{PROTOTYPES, ROOM, TILES as TILES_OFFSET, store};

/// Where the model begins behind its length.
const MODEL_OFFSET: usize = 64;

/// Arguments of `cargo xtask layers`.
#[derive(clap::Args, Clone, Debug)]
pub struct Arguments {
    /// The board: mps2-an386 (Cortex-M4F), mps2-an500 (Cortex-M7), mps3-an547 (Cortex-M55), or all
    pub board: String,
    /// Models of the table: yocto,zepto,atto [default: all]
    #[arg(long, value_delimiter = ',')]
    pub models: Option<Vec<String>>,
    /// Only the first 4 tiles of each model
    #[arg(long)]
    pub quick: bool,
    /// Leave out the scalar kernels, which take most of the time
    #[arg(long)]
    pub no_scalar: bool,
    /// Give up on a model after so many seconds
    #[arg(long, default_value_t = 7200)]
    pub timeout: u64,
}

/// Runs the command, and prints a line for each set of kernels and way through a model.
///
/// # Errors
/// [`crate::firmware::Missing`] if something has to be installed first; otherwise if a hash differs, with the first place where it does.
pub fn main(arguments: &Arguments) -> Result<()> {
    let boards = if arguments.board == "all" { BOARDS.to_vec() } else { vec![Board::named(&arguments.board)?] };
    let wanted = arguments.models.clone().unwrap_or_else(|| MODELS.map(str::to_owned).to_vec());
    if let Some(name) = wanted.iter().find(|name| !MODELS.contains(&name.as_str())) {
        bail!("no model {name} in {TABLE}; there are: {}", MODELS.join(", "));
    }
    let tiles = if arguments.quick { FIRST } else { TILES };
    emulator::check_qemu()?;
    let table = Table::read(&root().join(TABLE))?;
    // Before anything runs: what is found must not get lost because a later board's target is missing.
    for board in &boards {
        check_target(board.target)?;
    }
    let mut failed = vec![];
    for board in boards {
        // The board's build script wants a model and an arena; this program looks at neither.
        let elf = build_program(&board, "layers", &default_model(), 1024)?.elf;
        for name in MODELS.into_iter().filter(|name| wanted.iter().any(|wanted| wanted == name)) {
            let case = Case::load(&root(), name)?;
            let (runs, seconds) = match run(&board, &elf, &case, tiles, arguments) {
                Ok(found) => found,
                Err(error) => {
                    failed.push(format!("{} ({}), {name}: {error:#}", board.name, board.cpu));
                    continue;
                }
            };
            for (what, places) in runs {
                let what = format!("{} ({}), {name}, {what}", board.name, board.cpu);
                match table.check(&case, tiles, &places) {
                    Ok(()) => print(&format!("{what}: {} places as in the table, {tiles} tiles\n", places.len()))?,
                    Err(error) => failed.push(format!("{what}: {error:#}")),
                }
            }
            print(&format!("emulator {seconds:.0} s\n"))?;
        }
    }
    ensure!(failed.is_empty(), "{}", failed.join("; "));
    Ok(())
}

/// Place and hash, in the order of the run.
type Places = Vec<(String, String)>;

/// Runs the board's program on the first `tiles` tiles of `case`: what each set of kernels hashed, and how many seconds all took.
fn run(
    board: &Board,
    elf: &[u8],
    case: &Case,
    tiles: usize,
    arguments: &Arguments,
) -> Result<(BTreeMap<String, Places>, f64)> {
    let tiles = store(&case.tiles.pick(&(0..tiles).collect::<Vec<_>>()))?;
    let file = case.file();
    let mut model = (file.len() as u32).to_le_bytes().to_vec();
    // Sets of kernels to pass over; the first is the scalar one.
    model.extend(u32::from(arguments.no_scalar).to_le_bytes());
    model.resize(MODEL_OFFSET, 0);
    model.extend(file);
    ensure!(model.len() <= ROOM, "the model has {} bytes, there is room for {ROOM}", file.len());
    let loaded = [
        Loaded { bytes: &tiles, address: board.psram + TILES_OFFSET },
        Loaded { bytes: &model, address: board.psram + PROTOTYPES },
    ];
    let timeout = Duration::from_secs(arguments.timeout);
    let outcome = emulator::run(board.machine, elf, &loaded, false, timeout)?;
    ensure!(outcome.success, "the program ended with an error: {}", outcome.console.trim());
    let runs = parse(&outcome.console)?;
    // What the board's processor has must have run, one pass and two.
    let sets: &[&str] = if board.target.starts_with("thumbv8m") { &["dsp", "helium"] } else { &["dsp"] };
    for key in sets.iter().flat_map(|set| [1, 2].map(|passes| format!("{set}, passes {passes}"))) {
        ensure!(runs.contains_key(&key), "the program hashed nothing with {key}");
    }
    Ok((runs, outcome.seconds))
}

/// Reads `SET,PASSES,PLACE,HASH` lines.
fn parse(console: &str) -> Result<BTreeMap<String, Places>> {
    let mut runs: BTreeMap<String, Places> = BTreeMap::new();
    for line in console.lines() {
        let fields: Vec<&str> = line.split(',').collect();
        let [set, passes, place, hash] = fields[..] else { bail!("the program wrote {line:?}") };
        runs.entry(format!("{set}, passes {passes}")).or_default().push((place.into(), hash.into()));
    }
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_gathered_by_set_and_passes() {
        let runs = parse("scalar,1,stem,0a\nscalar,1,block 0.0,0b\nscalar,2,stem,0c\n").unwrap();
        assert_eq!(runs["scalar, passes 1"], [("stem".into(), "0a".into()), ("block 0.0".into(), "0b".into())]);
        assert_eq!(runs["scalar, passes 2"], [("stem".to_owned(), "0c".to_owned())]);
        assert!(parse("the model is damaged").unwrap_err().to_string().contains("the model is damaged"));
    }

    #[test]
    fn an_unknown_model_is_named() {
        let models = Some(vec!["tera".into()]);
        let arguments = Arguments { board: "all".into(), models, quick: true, no_scalar: true, timeout: 1 };
        let error = main(&arguments).unwrap_err().to_string();
        assert!(error.starts_with("no model tera in") && error.contains("yocto, zepto, atto"), "{error}");
    }
}
