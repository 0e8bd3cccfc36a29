//! Settings from files: TOML, and `.env`.

use std::path::Path;

use super::{ConfigError, Settings};

/// Reads a settings file.
pub(super) fn read(path: &Path) -> Result<Settings, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::ReadFile { path: path.to_owned(), source })?;
    // Neither the error's own text nor its source is passed on: both quote the line.
    toml::from_str(&text).map_err(|error| {
        let line =
            error.span().map_or(1, |span| 1 + text[..span.start.min(text.len())].matches('\n').count());
        ConfigError::ParseFile { path: path.to_owned(), reason: format!("line {line}: {}", error.message()) }
    })
}

impl Settings {
    /// Reads `.env` in the working directory or above it, where there is one, into the process's environment.
    /// Variables that are set already stay as they are.
    ///
    /// To be called first thing in `main`, before there is a second thread.
    ///
    /// # Errors
    /// The file is there, but cannot be read or is not right.
    pub fn load_dot_env() -> Result<(), ConfigError> {
        let reason = match dotenvy::dotenv() {
            Ok(_) => return Ok(()),
            Err(error) if error.not_found() => return Ok(()),
            Err(dotenvy::Error::LineParse(_, at)) => {
                format!("a line cannot be read from its character {at} on")
            }
            Err(dotenvy::Error::Io(error)) => error.to_string(),
            Err(_) => "it names a variable that cannot be".to_owned(),
        };
        Err(ConfigError::DotEnv { reason })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_line_and_shows_no_secret() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("server.toml");
        let broken = ["listen = '127.0.0.1:80'\njwt_secret = 'hunter2' x\n", "\njwt_secrets = 'hunter2'\n"];
        for text in broken {
            std::fs::write(&path, text).unwrap();
            let error = read(&path).unwrap_err();
            let shown = format!("{error} {error:?}");
            assert!(shown.contains("line 2") && !shown.contains("hunter2"), "{shown}");
        }
    }
}
