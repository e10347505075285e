//! The keys for tokens that settings ask for.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use wsc_auth::{ExposeSecret, JwtConfig, JwtError, JwtKey};
use wsc_config::AuthSettings;

/// Longest key file in bytes. What is longer is something else, named by mistake.
const MAX_KEY_FILE: u64 = 64 * 1024;

/// Reads what tokens are checked with: the key that `auth.*` names, from its file where it names one, with the issuer,
/// the audience and the leeway. `None` where no key is named. Whether authentication is switched on does not matter
/// here.
///
/// # Errors
///
/// [`KeyError`] names the setting and the file, never what is in it.
pub fn jwt_config(auth: &AuthSettings) -> Result<Option<JwtConfig>, KeyError> {
    let Some(source) = source(auth)? else { return Ok(None) };
    let Source { setting, path, key } = source;
    key.check().map_err(|problem| KeyError::Unfit { setting, path, problem })?;
    let mut config = JwtConfig::new(key);
    config.issuer = Some(auth.issuer.clone()).filter(|issuer| !issuer.is_empty());
    config.audience = auth.audience.clone();
    config.leeway = auth.leeway;
    Ok(Some(config))
}

/// Why there is no key although the settings name one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// More than one is named.
    #[error("{}: only one of them can be used", .0.join(", "))]
    Several(Vec<&'static str>),
    /// The file cannot be read.
    #[error("{setting}: cannot read {}: {problem}", .path.display())]
    Unreadable {
        /// The setting that names the file.
        setting: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        problem: io::Error,
    },
    /// The key cannot be used.
    #[error("{setting}{}: {problem}", in_file(.path.as_deref()))]
    Unfit {
        /// The setting.
        setting: &'static str,
        /// The file, where the setting names one.
        path: Option<PathBuf>,
        /// What is wrong with the key.
        #[source]
        problem: JwtError,
    },
}

/// A key, and where it comes from.
struct Source {
    setting: &'static str,
    path: Option<PathBuf>,
    key: JwtKey,
}

fn source(auth: &AuthSettings) -> Result<Option<Source>, KeyError> {
    let set = [
        ("auth.secret_key", auth.secret_key.is_some()),
        ("auth.secret_key_file", auth.secret_key_file.is_some()),
        ("auth.public_key", auth.public_key.is_some()),
        ("auth.public_key_file", auth.public_key_file.is_some()),
        ("auth.jwks_url", auth.jwks_url.is_some()),
    ];
    let set: Vec<_> = set.into_iter().filter(|(_, is_set)| *is_set).map(|(setting, _)| setting).collect();
    let setting = match set[..] {
        [] => return Ok(None),
        [setting] => setting,
        _ => return Err(KeyError::Several(set)),
    };
    let mut path = None;
    let mut from_file = |file: &Path| {
        path = Some(file.to_owned());
        read(file).map_err(|problem| KeyError::Unreadable { setting, path: file.to_owned(), problem })
    };
    let key = if let Some(secret) = &auth.secret_key {
        JwtKey::Secret(secret.expose_secret().into())
    } else if let Some(file) = &auth.secret_key_file {
        JwtKey::Secret(from_file(file).map(without_line_end)?.into())
    } else if let Some(pem) = &auth.public_key {
        JwtKey::PublicPem(pem.clone())
    } else if let Some(file) = &auth.public_key_file {
        JwtKey::PublicPem(from_file(file)?)
    } else {
        JwtKey::KeySet { url: auth.jwks_url.clone().unwrap_or_default() }
    };
    Ok(Some(Source { setting, path, key }))
}

fn read(path: &Path) -> io::Result<String> {
    // Opening a pipe, say, would wait for somebody to write to it.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("is no regular file"));
    }
    let mut text = String::new();
    let length = File::open(path)?.take(MAX_KEY_FILE + 1).read_to_string(&mut text)?;
    if length as u64 > MAX_KEY_FILE {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("more than {MAX_KEY_FILE} bytes are no key")));
    }
    Ok(text)
}

/// Takes the end of the line off that editors and `echo` put behind a key; one, as a key may end in any byte.
fn without_line_end(mut text: String) -> String {
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    text
}

fn in_file(path: Option<&Path>) -> String {
    path.map_or_else(String::new, |path| format!(" ({})", path.display()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use wsc_config::Secret;

    use super::*;

    const SECRET: &str = "a shared key of 32 bytes at least";

    fn file(name: &str, text: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        (folder, path)
    }

    fn auth(change: impl FnOnce(&mut AuthSettings)) -> AuthSettings {
        let mut auth = AuthSettings::default();
        change(&mut auth);
        auth
    }

    fn secret_of(auth: &AuthSettings) -> String {
        match jwt_config(auth).unwrap().unwrap().key {
            JwtKey::Secret(secret) => secret.expose_secret().to_owned(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn without_a_key_there_is_nothing() {
        assert!(jwt_config(&AuthSettings::default()).unwrap().is_none());
    }

    #[test]
    fn what_tokens_must_say_comes_along() {
        let mut auth = auth(|auth| auth.secret_key = Some(Secret::new(SECRET)));
        let config = jwt_config(&auth).unwrap().unwrap();
        assert_eq!((config.issuer.as_deref(), config.audience), (Some("wsc"), None));
        auth.issuer = String::new();
        auth.audience = Some("hub".into());
        auth.leeway = Duration::from_secs(5);
        let config = jwt_config(&auth).unwrap().unwrap();
        assert_eq!((config.issuer, config.audience.as_deref()), (None, Some("hub")));
        assert_eq!(config.leeway, Duration::from_secs(5));
    }

    #[test]
    fn a_secrets_file_may_end_in_one_line_end() {
        for end in ["", "\n", "\r\n"] {
            let (_folder, path) = file("key", format!("{SECRET}{end}").as_bytes());
            let auth = auth(|auth| auth.secret_key_file = Some(path));
            assert_eq!(secret_of(&auth), SECRET, "{end:?}");
        }
        let (_folder, path) = file("key", format!("{SECRET} \n\n").as_bytes());
        let auth = auth(|auth| auth.secret_key_file = Some(path));
        assert_eq!(secret_of(&auth), format!("{SECRET} \n"));
    }

    #[test]
    fn errors_name_setting_and_file_and_no_key() {
        let (_folder, short) = file("short.key", b"hunter2\n");
        let (_folder, binary) = file("binary.key", b"\xff\xfe hunter2");
        let (_folder, long) = file("long.key", &vec![b'x'; 70_000]);
        let (_folder, no_pem) = file("no.pem", b"hunter2");
        let nowhere = PathBuf::from("nowhere.key");
        let secret_file = |path: &PathBuf| auth(|auth| auth.secret_key_file = Some(path.clone()));
        let public_file = |path: &PathBuf| auth(|auth| auth.public_key_file = Some(path.clone()));
        let in_settings = auth(|auth| auth.secret_key = Some(Secret::new("hunter2")));
        let url = auth(|auth| auth.jwks_url = Some("ftp://hunter2@idp".into()));
        for (auth, parts) in [
            (secret_file(&short), ["auth.secret_key_file (", "short.key", "7 bytes"]),
            (secret_file(&binary), ["auth.secret_key_file", "binary.key", "UTF-8"]),
            (secret_file(&long), ["auth.secret_key_file", "long.key", "65536"]),
            (secret_file(&nowhere), ["auth.secret_key_file", "nowhere.key", "No such file"]),
            (public_file(&no_pem), ["auth.public_key_file", "no.pem", "PEM"]),
            (in_settings, ["auth.secret_key: ", "7 bytes", "32"]),
            (url, ["auth.jwks_url: ", "URL", "http"]),
        ] {
            let error = jwt_config(&auth).unwrap_err().to_string();
            for part in parts {
                assert!(error.contains(part), "{error} has no {part}");
            }
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn of_two_keys_none_is_chosen() {
        let auth = auth(|auth| {
            auth.secret_key = Some(Secret::new(SECRET));
            auth.jwks_url = Some("https://idp.example/keys".into());
        });
        let error = jwt_config(&auth).unwrap_err().to_string();
        assert_eq!(error, "auth.secret_key, auth.jwks_url: only one of them can be used");
    }
}
