//! The table of settings in `SETTINGS.md` is what the program takes. `WRENN_UPDATE=1` writes it anew.

use std::fmt::Write as _;
use std::path::Path;

use clap::{Arg, Args as _, Command};
use wrenn_server::Settings;
use wrenn_server::program::ServeHost;

const HEAD: &str = "\
# Settings of the server

Each is a flag, a variable of the environment (or of `.env`), or a key of the TOML file that `--config` names; the first of
these that has it wins. The default is in brackets. What is secret is never logged or shown; give it by environment, `.env`
or file, as flags are seen by the other users of a machine.

| flag | variable | key | |
|---|---|---|---|
";

const HOST: &str = "
# Settings of a host

What `wrenn-server host` takes beside its name, as flags or variables. A host may register itself (`--register`), so that the
server need not be told of it; it shows who it is by the secret that both know.

| flag | variable | |
|---|---|---|
";

fn row(argument: &Arg) -> String {
    let flag = argument.get_long().unwrap();
    let variable = argument.get_env().unwrap().to_string_lossy();
    // The file does not name itself.
    let key = if flag == "config" { String::new() } else { format!("`{}`", flag.replace('-', "_")) };
    format!("| `--{flag}` | `{variable}` | {key} | {} |\n", help(argument))
}

fn help(argument: &Arg) -> String {
    let help = argument.get_long_help().or(argument.get_help()).unwrap().to_string().replace('\n', " ");
    help.replace('|', "\\|")
}

fn host_row(argument: &Arg) -> String {
    let (flag, variable) = (argument.get_long().unwrap(), argument.get_env().unwrap().to_string_lossy());
    format!("| `--{flag}` | `{variable}` | {} |\n", help(argument))
}

#[test]
fn the_table_of_settings_is_the_programs() {
    let command = Settings::augment_args(Command::new("wrenn-server"));
    let mut table = HEAD.to_owned();
    for argument in command.get_arguments().filter(|argument| argument.get_long().is_some()) {
        write!(table, "{}", row(argument)).unwrap();
    }
    table.push_str(HOST);
    let command = ServeHost::augment_args(Command::new("host"));
    for argument in command.get_arguments().filter(|argument| argument.get_long().is_some()) {
        write!(table, "{}", host_row(argument)).unwrap();
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("SETTINGS.md");
    if std::env::var_os("WRENN_UPDATE").is_some() {
        std::fs::write(&path, &table).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == table, "{path:?} is out of date: run this test with WRENN_UPDATE=1");
}

#[test]
fn every_setting_can_stand_in_the_file() {
    let command = Settings::augment_args(Command::new("wrenn-server"));
    for argument in command.get_arguments().filter_map(Arg::get_long).filter(|flag| *flag != "config") {
        let key = argument.replace('-', "_");
        // Of the wrong type on purpose: a key that is unknown is told from a value that is wrong.
        let error = toml_error(&format!("{key} = {{}}"));
        assert!(!error.contains("unknown field"), "{key}: {error}");
    }
    assert!(toml_error("colour = 'red'").contains("unknown field"));
}

fn toml_error(text: &str) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let settings = Settings { config: Some(file.path().to_owned()), ..Settings::default() };
    settings.resolve().unwrap_err().to_string()
}
