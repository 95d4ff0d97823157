//! `cargo demo`: the whole way on the sample tiles, by the same commands that a user types.

mod baseline;
mod children;
mod page;
mod picture;
mod summary;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nadir_formats::{Tiles, read_integers, write_atomic};
use serde_json::Value;

use crate::firmware::{Missing, root};
use crate::qemu;
use baseline::{Kept, first_in_first_out, random};
use children::{Program, Programs, number};
pub use summary::{Accuracy, Emulated, Fate, Summary};

/// Values of a split file.
const TRAIN: i64 = 0;
const TEST: i64 = 2;
/// Draws of the random baseline.
const DRAWS: usize = 1000;
/// Neighbours that vote in the k-NN probe: few, as each class has but 20 labelled tiles.
const NEIGHBOURS: &str = "5";
/// Tiles that the emulated microcontroller embeds.
const EMULATED_TILES: usize = 16;

/// Arguments of `cargo demo`.
#[derive(clap::Args, Clone, Debug)]
pub struct Arguments {
    /// Class of interest, by its name or number in samples/README.md
    #[arg(long, default_value = "Industrial")]
    pub wanted: String,
    /// Bytes that may go down, in percent of the stream's
    #[arg(long, default_value_t = 15.0, value_name = "PERCENT")]
    pub budget: f64,
    /// Epochs of distillation on the 200 train tiles
    #[arg(long, default_value_t = 8)]
    pub epochs: u32,
    /// The teacher
    #[arg(long, default_value = "models/zepto-rgb.safetensors", value_name = "T.safetensors")]
    pub teacher: PathBuf,
    /// The student to continue from; begun anew where there is no such file
    #[arg(long, default_value = "models/yocto-rgb.safetensors", value_name = "S.safetensors")]
    pub student: PathBuf,
    /// Folder with `trainer`, `quantize` and `triage`, in place of building them
    #[arg(long, value_name = "DIR")]
    pub programs: Option<PathBuf>,
    /// Leave the emulated microcontroller out
    #[arg(long)]
    pub no_qemu: bool,
    /// Folder to write to; what is in it is replaced
    #[arg(long, default_value = "target/demo", value_name = "DIR")]
    pub out: PathBuf,
}

/// The sample tiles, divided.
struct Samples {
    folder: PathBuf,
    /// The held-out tiles in capture order.
    stream: Tiles,
    /// Class of each.
    classes: Vec<i64>,
    /// Names of the classes.
    names: Vec<String>,
    /// Number of tiles to learn from.
    train: usize,
}

/// Runs the command.
///
/// # Errors
/// At the first step that fails, with its command's own message above.
pub fn main(arguments: &Arguments) -> Result<()> {
    let started = Instant::now();
    let out = root().join(&arguments.out);
    std::fs::create_dir_all(&out).with_context(|| out.display().to_string())?;
    let programs = match &arguments.programs {
        Some(folder) => Programs::in_folder(folder)?,
        None => {
            println!("building the commands (the first time this takes minutes)");
            Programs::build()?
        }
    };
    let after_build = Instant::now();
    let summary = demo(arguments, &out, &programs)?;
    let seconds = (started.elapsed().as_secs_f64(), after_build.elapsed().as_secs_f64());
    write_atomic(&out.join("summary.json"), format!("{:#}\n", summary.json()).as_bytes())?;
    println!("\n{}", summary.text());
    println!("{:.0} s, {:.0} s of them after the build", seconds.0, seconds.1);
    println!("report: {}", out.join("report.html").display());
    Ok(())
}

fn demo(arguments: &Arguments, out: &Path, programs: &Programs) -> Result<Summary> {
    let at = |name: &str| out.join(name);
    let samples = samples()?;
    let wanted = class_number(&samples.names, &arguments.wanted)?;
    let (all, labels, split) =
        (samples.folder.join("tiles.npy"), samples.folder.join("labels.npy"), samples.folder.join("split.npy"));
    let (teacher, shipped) = (root().join(&arguments.teacher), root().join(&arguments.student));
    ensure!(teacher.is_file(), "{}: no such file: the demo needs the shipped teacher", teacher.display());
    let stream_file = at("stream.npy");
    samples.stream.write(&stream_file)?;

    let start = if shipped.is_file() { "the shipped student goes on learning" } else { "a new student learns" };
    step(1, &format!("distil: {start} from the teacher, {} tiles, {} epochs", samples.train, arguments.epochs));
    let run = at("distil");
    clear(&run)?;
    let mut distil = programs.command(Program::Trainer);
    distil.arg("distill").arg("--teacher").arg(&teacher).arg("--tiles").arg(&all).arg("--split").arg(&split);
    distil.args(["--use", "0", "--name", "yocto-demo", "--batch", "50", "--flips"]);
    distil.args(["--seed", "1", "--data-name", "samples/eurosat-rgb", "--epochs", &arguments.epochs.to_string()]);
    if shipped.is_file() {
        // A student that has seen thousands of tiles must not be torn about by 200.
        distil.arg("--init").arg(&shipped).args(["--lr", "5e-5"]);
    } else {
        distil.args(["--size", "yocto"]);
    }
    children::run(distil.arg("--out").arg(&run))?;
    let student = run.join("encoder.safetensors");

    step(2, "quantize: one file for the runtime, calibrated on the train tiles");
    let train_file = at("train.npy");
    let all_tiles = Tiles::read(&all)?;
    all_tiles.pick(&rows(&read_integers(&split)?, TRAIN)).write(&train_file)?;
    let (int8, f32_model) = (at("yocto-int8.nadir"), at("yocto-f32.nadir"));
    for (precision, file) in [("int8", &int8), ("f32", &f32_model)] {
        let mut convert = programs.command(Program::Quantize);
        convert.arg("convert").arg("--model").arg(&student).args(["--precision", precision]);
        if precision == "int8" {
            convert.arg("--calibrate").arg(&train_file);
        }
        children::run(convert.arg("--out").arg(file))?;
    }

    step(3, "embed and probe: what the float encoder knows, and what int8 keeps of it");
    let (float_embeddings, int8_embeddings) = (at("float.npy"), at("int8.npy"));
    let mut embed = programs.command(Program::Trainer);
    children::run(
        embed.arg("embed").arg("--model").arg(&student).arg("--tiles").arg(&all).arg("--out").arg(&float_embeddings),
    )?;
    let mut embed = programs.command(Program::Quantize);
    children::run(
        embed.arg("embed").arg("--model").arg(&int8).arg("--tiles").arg(&all).arg("--out").arg(&int8_embeddings),
    )?;
    let probe = |embeddings: &Path| -> Result<Accuracy> {
        let mut probe = programs.command(Program::Trainer);
        probe.arg("probe").arg("--embeddings").arg(embeddings).arg("--labels").arg(&labels);
        let found = children::json(probe.arg("--split").arg(&split).args(["--k", NEIGHBOURS, "--json"]))?;
        Accuracy::of(&found)
    };
    let (float, int8_accuracy) = (probe(&float_embeddings)?, probe(&int8_embeddings)?);
    let mut compare = programs.command(Program::Quantize);
    compare.arg("compare").arg("--model").arg(&int8).arg("--float").arg(&student);
    let agreement = children::json(compare.arg("--tiles").arg(&stream_file).arg("--json"))?;
    println!("float  {float}\nint8   {int8_accuracy}");

    let stream_bytes = samples.stream.tile_len() * samples.stream.len() * value_bytes(&samples.stream);
    let budget = (stream_bytes as f64 * arguments.budget / 100.0) as usize;
    let class = &samples.names[wanted as usize];
    step(4, &format!("triage: {class} is wanted; {budget} of {stream_bytes} bytes may go down"));
    let (prototypes, outbox) = (at("prototypes.bin"), at("outbox"));
    let mut learn = programs.command(Program::Triage);
    learn.arg("prototypes").arg("--model").arg(&int8).arg("--tiles").arg(&all).arg("--labels").arg(&labels);
    learn.arg("--split").arg(&split).args(["--use", "0", "--wanted", &wanted.to_string()]);
    children::run(learn.arg("--out").arg(&prototypes))?;
    clear(&outbox)?;
    let mut triage = programs.command(Program::Triage);
    triage.arg("run").arg("--model").arg(&int8).arg("--frames").arg(&stream_file);
    triage.arg("--prototypes").arg(&prototypes).args(["--budget", &budget.to_string()]).arg("--json");
    children::output(triage.arg("--out").arg(&outbox))?;
    let mut show = programs.command(Program::Triage);
    let fates = fates(&children::output(show.arg("show").arg(&outbox).arg("--json"))?, samples.stream.len())?;
    let tile_bytes = stream_bytes / samples.stream.len();
    let is_wanted: Vec<bool> = samples.classes.iter().map(|class| *class == wanted).collect();
    let whole = budget / tile_bytes;
    let ours = Kept::of(&fates.iter().map(|fate| fate.rung == "tile").collect::<Vec<_>>(), &is_wanted);
    let fifo = first_in_first_out(&is_wanted, whole);
    let random = random(&is_wanted, whole, DRAWS, 1);
    println!("{} of {} wanted tiles kept in full", ours.wanted, ours.all_wanted);

    step(5, "the same model on an emulated Cortex-M7");
    let emulated = emulate(arguments, &int8, &stream_file, &prototypes)?;

    step(6, "report");
    let size = |path: &Path| std::fs::metadata(path).map(|data| data.len()).with_context(|| path.display().to_string());
    let summary = Summary {
        class: class.clone(),
        train_tiles: samples.train,
        stream_bytes,
        budget,
        outbox_bytes: size(&outbox.join("outbox.bin"))? as usize,
        model_bytes: size(&int8)? as usize,
        float,
        int8: int8_accuracy,
        cosine: number(&agreement, "cosine_mean")?,
        cosine_min: number(&agreement, "cosine_min")?,
        ours,
        fifo,
        random,
        emulated,
        fates,
    };
    let loss = std::fs::read(run.join("loss.png")).with_context(|| run.join("loss.png").display().to_string())?;
    let html = page::page(&summary, &samples.stream, &samples.classes, &samples.names, &loss)?;
    write_atomic(&at("report.html"), html.as_bytes())?;
    Ok(summary)
}

fn step(number: usize, what: &str) {
    println!("\n[{number}/6] {what}");
}

/// Empties a folder that an earlier run of the demo left.
fn clear(folder: &Path) -> Result<()> {
    if folder.exists() {
        std::fs::remove_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    Ok(())
}

fn rows(split: &[i64], part: i64) -> Vec<usize> {
    (0..split.len()).filter(|row| split[*row] == part).collect()
}

fn value_bytes(tiles: &Tiles) -> usize {
    match tiles.pixels {
        nadir_formats::Pixels::U8(_) => 1,
        nadir_formats::Pixels::U16(_) => 2,
        nadir_formats::Pixels::F32(_) => 4,
    }
}

fn samples() -> Result<Samples> {
    let folder = root().join("samples/eurosat-rgb");
    let tiles = Tiles::read(&folder.join("tiles.npy"))?;
    let (labels, split) = (read_integers(&folder.join("labels.npy"))?, read_integers(&folder.join("split.npy"))?);
    ensure!(
        labels.len() == tiles.len() && split.len() == tiles.len(),
        "{}: {} tiles, {} labels, {} split codes",
        folder.display(),
        tiles.len(),
        labels.len(),
        split.len()
    );
    let test = rows(&split, TEST);
    ensure!(!test.is_empty(), "{}: no held-out tile", folder.display());
    let names = class_names(&folder.join("table.csv"))?;
    let classes: Vec<i64> = test.iter().map(|row| labels[*row]).collect();
    ensure!(
        classes.iter().all(|class| usize::try_from(*class).is_ok_and(|class| class < names.len())),
        "{}: a label has no name in table.csv",
        folder.display()
    );
    Ok(Samples { stream: tiles.pick(&test), classes, names, train: rows(&split, TRAIN).len(), folder })
}

/// Names of the classes by number, from the columns `class` and `label`. The table has no quoted field.
fn class_names(table: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(table).with_context(|| table.display().to_string())?;
    let mut lines = text.lines();
    let head: Vec<&str> = lines.next().unwrap_or_default().split(',').collect();
    let column = |name: &str| {
        head.iter().position(|c| *c == name).with_context(|| format!("{}: no column {name}", table.display()))
    };
    let (class, label) = (column("class")?, column("label")?);
    let mut names: Vec<String> = vec![];
    for (index, line) in lines.enumerate() {
        let fields: Vec<&str> = line.split(',').collect();
        let number = fields.get(label).and_then(|f| f.parse::<u8>().ok()).map(usize::from);
        let (Some(number), Some(name)) = (number, fields.get(class)) else {
            anyhow::bail!("{}: row {index} has no class or label", table.display());
        };
        if names.len() <= number {
            names.resize(number + 1, String::new());
        }
        names[number] = (*name).to_owned();
    }
    Ok(names)
}

fn class_number(names: &[String], wanted: &str) -> Result<i64> {
    let by_name = names.iter().position(|name| name.eq_ignore_ascii_case(wanted));
    let number = by_name.or_else(|| wanted.parse().ok().filter(|number| *number < names.len()));
    number.map(|n| n as i64).with_context(|| format!("--wanted {wanted}: the classes are {}", names.join(", ")))
}

/// One fate a tile from the JSON lines of `triage show`; a tile that does not appear was left behind.
fn fates(lines: &str, tiles: usize) -> Result<Vec<Fate>> {
    let mut fates = vec![Fate::left_behind(); tiles];
    for line in lines.lines().filter(|line| !line.trim().is_empty()) {
        let value: Value = serde_json::from_str(line).with_context(|| format!("triage show printed {line}"))?;
        let tile = value["tile"].as_u64().and_then(|tile| usize::try_from(tile).ok());
        let place = tile.and_then(|tile| fates.get_mut(tile));
        *place.with_context(|| format!("triage show printed a tile that is not in the stream: {line}"))? =
            Fate::of(&value)?;
    }
    Ok(fates)
}

fn emulate(arguments: &Arguments, model: &Path, stream: &Path, prototypes: &Path) -> Result<Emulated> {
    if arguments.no_qemu {
        println!("SKIPPED: --no-qemu");
        return Ok(Emulated::Skipped("--no-qemu".into()));
    }
    let run = qemu::run(&qemu::Arguments {
        model: Some(model.to_owned()),
        tiles: Some(stream.to_owned()),
        prototypes: Some(prototypes.to_owned()),
        count: EMULATED_TILES,
        ..qemu::Arguments::new("mps2-an500")
    });
    match run {
        Ok(report) => {
            print!("{}", report.text());
            ensure!(report.agrees(), "the emulated microcontroller and this machine disagree");
            Ok(Emulated::Ran {
                equal: report.equal(),
                embedded: report.embedded(),
                instructions: report.instructions(),
                ram: report.contents.ram,
                flash: report.contents.flash,
            })
        }
        Err(error) if error.is::<Missing>() => {
            println!("SKIPPED: {error:#}");
            Ok(Emulated::Skipped(format!("{error:#}")))
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_hold_what_the_demo_needs() {
        let samples = samples().unwrap();
        assert_eq!(samples.stream.shape, [200, 3, 64, 64]);
        assert_eq!(samples.train, 200);
        assert_eq!(samples.names.len(), 10);
        let wanted = class_number(&samples.names, "industrial").unwrap();
        assert_eq!(samples.names[wanted as usize], "Industrial");
        assert_eq!(class_number(&samples.names, "4").unwrap(), wanted);
        assert!(class_number(&samples.names, "10").unwrap_err().to_string().contains("SeaLake"));
        // A tenth of any prefix of whole tens, so that first-in-first-out owes nothing to luck.
        for end in (10..=200).step_by(10) {
            assert_eq!(samples.classes[..end].iter().filter(|class| **class == wanted).count(), end / 10);
        }
    }

    #[test]
    fn tiles_that_are_not_in_the_outbox_were_left_behind() {
        let line = r#"{"tile":1,"rung":"code","bytes":60,"score":-0.5,"reason":"routine"}"#;
        let fates = fates(line, 2).unwrap();
        assert_eq!((fates[0].rung.as_str(), fates[0].bytes), ("nothing", 0));
        assert_eq!((fates[1].rung.as_str(), fates[1].bytes, fates[1].score), ("code", 60, Some(-0.5)));
        assert!(super::fates(line, 1).is_err());
        assert!(super::fates("{}", 1).is_err());
    }
}
