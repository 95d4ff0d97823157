//! `--config FILE.toml`: a command's options from a file, and back.
//!
//! A file's keys are the options' long names without the dashes. They are put before those of the command line as if typed
//! there; an option that stands on the command line too, or excludes one that does, is left out: the command line wins.

use std::any::TypeId;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};
use toml::Value;

/// What belongs to one call of a command and not to the run that it describes.
const NOT_KEPT: [&str; 6] = ["config", "dry_run", "help", "out", "resume", "version"];

/// The arguments with those of the file that `--config` names put in, for the subcommands that have the option.
///
/// # Errors
/// If the file cannot be read, is not TOML, or has a key that is no option of the command or a value that is no option's.
pub fn with_file(cli: &Command, arguments: Vec<OsString>) -> Result<Vec<OsString>> {
    let texts: Vec<String> = arguments.iter().map(|a| a.to_string_lossy().into_owned()).collect();
    let Some(command) = texts.get(1).and_then(|name| cli.find_subcommand(name)) else { return Ok(arguments) };
    let Some(path) = config_path(command, &texts) else { return Ok(arguments) };
    let options = read(command, &path, &texts)?;
    let (head, own) = arguments.split_at(2);
    let own = own.iter().filter(|a| !switched_off(command, &a.to_string_lossy())).cloned();
    Ok(head.iter().cloned().chain(options.into_iter().map(OsString::from)).chain(own).collect())
}

fn config_path(command: &Command, texts: &[String]) -> Option<PathBuf> {
    option(command, "config")?;
    let at = texts.iter().position(|a| a == "--config" || a.starts_with("--config="))?;
    match texts[at].split_once('=') {
        Some((_, path)) => Some(path.into()),
        None => texts.get(at + 1).map(PathBuf::from),
    }
}

fn option<'a>(command: &'a Command, name: &str) -> Option<&'a Arg> {
    let also = |a: &Arg| a.get_all_aliases().is_some_and(|aliases| aliases.contains(&name));
    command.get_arguments().find(|a| a.get_long() == Some(name) || also(a))
}

/// Whether the options cannot stand together.
fn exclusive(command: &Command, a: &Arg, b: &Arg) -> bool {
    let names = |a: &Arg, b: &Arg| command.get_arg_conflicts_with(a).iter().any(|c| c.get_id() == b.get_id());
    names(a, b) || names(b, a)
}

fn is_switch(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::SetTrue)
}

/// Whether an argument is `--SWITCH=false`, which takes back what a file switches on.
fn switched_off(command: &Command, argument: &str) -> bool {
    let name = argument.strip_prefix("--").and_then(|a| a.strip_suffix("=false"));
    name.and_then(|name| option(command, name)).is_some_and(is_switch)
}

fn read(command: &Command, path: &Path, texts: &[String]) -> Result<Vec<String>> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).with_context(|| shown.to_string())?;
    let table: toml::Table = text.parse().with_context(|| shown.to_string())?;
    let names = texts.iter().filter_map(|a| a.strip_prefix("--"));
    let typed: Vec<&Arg> = names.filter_map(|a| option(command, a.split('=').next().unwrap_or(a))).collect();
    let mut arguments = Vec::new();
    for (key, value) in table {
        let known = option(command, &key).filter(|arg| !NOT_KEPT.contains(&arg.get_id().as_str()));
        let Some(arg) = known else {
            bail!("{shown}: {key} is no option of trainer {} that a file may give", command.get_name());
        };
        let flag = format!("--{key}");
        if typed.iter().any(|t| t.get_id() == arg.get_id() || exclusive(command, t, arg)) {
            continue;
        }
        let values = match value {
            Value::Array(values) => values.into_iter().map(plain).collect::<Option<Vec<_>>>(),
            value => plain(value).map(|v| vec![v]),
        };
        let values =
            values.with_context(|| format!("{shown}: {key} is neither text, number, true or false nor a list"))?;
        if is_switch(arg) {
            match values[..] {
                [ref one] if one == "true" => arguments.push(flag),
                [ref one] if one == "false" => {}
                _ => bail!("{shown}: {key} is {}, expected true or false", values.join(",")),
            }
        } else if let Some(comma) = arg.get_value_delimiter() {
            ensure!(!values.is_empty(), "{shown}: {key} is an empty list");
            arguments.push(format!("{flag}={}", values.join(&comma.to_string())));
        } else {
            let repeats = matches!(arg.get_action(), ArgAction::Append);
            ensure!(repeats || values.len() == 1, "{shown}: {key} has {} values, expected one", values.len());
            arguments.extend(values.into_iter().map(|value| format!("{flag}={value}")));
        }
    }
    Ok(arguments)
}

fn plain(value: Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text),
        Value::Integer(n) => Some(n.to_string()),
        Value::Float(x) => Some(x.to_string()),
        Value::Boolean(b) => Some(b.to_string()),
        _ => None,
    }
}

/// The TOML that stands for all options of a subcommand's `matches`, defaults included.
pub fn to_toml(command: &Command, matches: &ArgMatches) -> String {
    let name = command.get_name();
    let mut toml =
        format!("# Options of trainer {name}; repeat the run by trainer {name} --config FILE --out FOLDER\n");
    let mut options: Vec<&Arg> = command.get_arguments().filter(|a| a.get_long().is_some()).collect();
    options.sort_by_key(|a| a.get_long());
    for arg in options {
        let (id, long) = (arg.get_id().as_str(), arg.get_long().unwrap_or_default());
        if NOT_KEPT.contains(&id) {
            continue;
        }
        if is_switch(arg) {
            let _ = writeln!(toml, "{long} = {}", matches.get_flag(id));
            continue;
        }
        // A default of what does not apply would exclude what was typed.
        let typed = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
        if !typed(id) && command.get_arguments().any(|a| typed(a.get_id().as_str()) && exclusive(command, a, arg)) {
            continue;
        }
        let Some(raw) = matches.get_raw(id) else { continue };
        let values: Vec<String> = raw.map(|v| literal(arg, &v.to_string_lossy())).collect();
        let list = arg.get_value_delimiter().is_some() || matches!(arg.get_action(), ArgAction::Append);
        let _ = match list {
            true => writeln!(toml, "{long} = [{}]", values.join(", ")),
            false => writeln!(toml, "{long} = {}", values.join("")),
        };
    }
    toml
}

/// A value as TOML: a number where the option takes one, otherwise text.
fn literal(arg: &Arg, raw: &str) -> String {
    let kind = arg.get_value_parser().type_id();
    let text = kind == TypeId::of::<String>() || kind == TypeId::of::<PathBuf>();
    let number = format!("x = {raw}").parse::<toml::Table>().is_ok_and(|t| t["x"].is_integer() || t["x"].is_float());
    if number && !text { raw.to_owned() } else { Value::String(raw.to_owned()).to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cli() -> Command {
        let option = |name: &'static str| Arg::new(name).long(name);
        let train = Command::new("train")
            .arg(option("config"))
            .arg(option("out"))
            .arg(option("name").value_parser(clap::value_parser!(String)))
            .arg(option("lr").value_parser(clap::value_parser!(f64)).default_value("0.001"))
            .arg(option("dims").value_delimiter(',').value_parser(clap::value_parser!(u16)))
            .arg(option("target").action(ArgAction::Append))
            .arg(option("base").conflicts_with("lr"))
            .arg(option("flips").action(ArgAction::SetTrue));
        Command::new("trainer").subcommand(train)
    }

    fn run(file: &str, typed: &str) -> Result<(ArgMatches, String)> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run.toml");
        std::fs::write(&path, file).unwrap();
        let typed = format!("trainer train --config {} {typed}", path.display());
        let all = with_file(&cli(), typed.split_whitespace().map(OsString::from).collect())?;
        let matches = cli().try_get_matches_from(all)?.remove_subcommand().unwrap().1;
        let toml = to_toml(cli().find_subcommand("train").unwrap(), &matches);
        Ok((matches, toml))
    }

    #[test]
    fn files_and_command_lines_meet() {
        let file = "name = \"2026\"\nlr = 1e-2\ndims = [1, 2]\ntarget = [\"a=b\", \"c\"]\nflips = true";
        let (m, toml) = run(file, "").unwrap();
        assert_eq!((m.get_one::<f64>("lr"), m.get_flag("flips")), (Some(&0.01), true));
        assert_eq!(m.get_many::<String>("target").unwrap().collect::<Vec<_>>(), ["a=b", "c"]);
        assert_eq!(m.get_many::<u16>("dims").unwrap().collect::<Vec<_>>(), [&1, &2]);
        // What is written reads as the same again.
        assert_eq!(run(&toml, "").unwrap().1, toml);
        assert!(toml.contains("name = \"2026\"\n") && toml.contains("lr = 0.01\n"), "{toml}");
        // The command line wins, also over lists and switches.
        let (m, _) = run(file, "--lr=5 --target d --flips=false --out x").unwrap();
        assert_eq!((m.get_one::<f64>("lr"), m.get_flag("flips")), (Some(&5.0), false));
        assert_eq!(m.get_many::<String>("target").unwrap().collect::<Vec<_>>(), ["d"]);
        let (m, _) = run("lr = 1e-2", "--base 7").unwrap();
        assert_eq!((m.get_one::<String>("base").unwrap().as_str(), m.get_one::<f64>("lr")), ("7", Some(&0.001)));
        let (_, toml) = run("", "--base 7").unwrap();
        assert!(toml.contains("base = \"7\"") && !toml.contains("lr ="), "{toml}");
        assert_eq!(run(&toml, "").unwrap().1, toml);
        assert_eq!(run("", "").unwrap().0.get_one::<f64>("lr"), Some(&0.001));
    }

    #[test]
    fn bad_files_are_named() {
        let bad = |file: &str| format!("{:#}", run(file, "").unwrap_err());
        assert!(bad("colour = 1").contains("run.toml: colour is no option of trainer train"));
        assert!(bad("out = \"x\"").contains("out is no option"));
        assert!(bad("flips = 2").contains("flips is 2, expected true or false"));
        assert!(bad("lr = [1, 2]").contains("lr has 2 values, expected one"));
        assert!(bad("lr = {a = 1}").contains("lr is neither"));
        assert!(bad("lr = ").contains("run.toml"));
        let missing = ["trainer", "train", "--config", "nowhere.toml"].map(OsString::from);
        assert!(format!("{:#}", with_file(&cli(), missing.into()).unwrap_err()).contains("nowhere.toml"));
    }
}
