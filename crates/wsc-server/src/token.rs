//! Tokens on the command line: `wsc gen-token` and `wsc check-token`.

use std::{
    fs,
    io::{self, Read},
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, anyhow};
use clap::Args;
use serde_json::json;
use wsc_hub::{
    Id, UserType,
    auth::{
        HmacAlgorithm, Identity, JwtAuthenticator, JwtConfig, JwtKey, MAX_TOKEN_LEN, Permissions, TokenClaims,
        TokenIssuer, TokenProblem,
    },
    config::{self, AuthSettings, Source, Strictness},
    jwt_config,
};

use crate::cli::{Failure, say};

/// What a token is to say, and what it is signed with.
#[derive(Args, Debug)]
pub(crate) struct GenTokenArgs {
    /// The user that the token speaks for
    #[arg(short, long, value_name = "ID", value_parser = user_id)]
    user: Id,
    /// How long it is valid: 1h, 7d, or a number of seconds
    #[arg(short, long, value_name = "TIME", default_value = "7d", value_parser = ttl)]
    ttl: Duration,
    /// visitor, customer, agent, admin, bot, vip, system or observer
    #[arg(long, value_name = "TYPE", default_value = "visitor")]
    user_type: UserType,
    /// A name for people
    #[arg(long, value_name = "NAME")]
    username: Option<String>,
    /// What the user may do, such as join:room or send:message:support-*; several with commas, or again
    #[arg(short, long = "permission", value_name = "PERMISSION", value_delimiter = ',', value_parser = permission)]
    permissions: Vec<String>,
    /// The token's own id, by which it can be revoked
    #[arg(long, value_name = "ID")]
    jti: Option<String>,
    /// Whom the token is for; default auth.audience
    #[arg(short, long)]
    audience: Option<String>,
    /// HS256, HS384 or HS512
    #[arg(long, value_name = "NAME", default_value = "HS256", conflicts_with = "key_file")]
    algorithm: HmacAlgorithm,
    /// Sign with this private key (PEM: RSA, EC P-256 or Ed25519) instead of the shared key in the settings
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Print the token and nothing else
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// A token, and the settings that it is checked with.
#[derive(Args, Debug)]
pub(crate) struct CheckTokenArgs {
    /// The token; read from standard input where it is missing
    token: Option<String>,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// Which settings count.
#[derive(Args, Debug)]
struct SettingsArgs {
    /// The settings file; default ./wsc.yaml where there is one
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Lay this profile of the file over its plain settings
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,
}

impl GenTokenArgs {
    /// Prints the token on standard output, and what it is on standard error.
    pub(crate) fn run(self) -> Result<(), Failure> {
        let auth = self.settings.load()?;
        let key = key(&auth)?;
        let issuer = self.issuer(key.as_ref())?;
        let claims = self.claims(&auth);
        let token = issuer.issue(&claims).map_err(|e| Failure::Usage(e.into()))?;
        say(&format!("{token}\n"))?;
        if !self.quiet {
            let ttl = config::format_duration(self.ttl);
            let (user, kind) = (&claims.user_id, claims.user_type);
            eprintln!("wsc: a token for {kind} {user}, valid for {ttl}; {}", permissions_in_words(&claims.permissions));
            self.warn(key, &token)?;
        }
        Ok(())
    }

    fn issuer(&self, key: Option<&JwtConfig>) -> Result<TokenIssuer, Failure> {
        if let Some(path) = &self.key_file {
            let unusable = || format!("--key-file {}", path.display());
            let pem = fs::read_to_string(path).with_context(unusable).map_err(Failure::Usage)?;
            return TokenIssuer::from_private_pem(&pem).with_context(unusable).map_err(Failure::Usage);
        }
        match key.map(|key| &key.key) {
            Some(JwtKey::Secret(secret)) => {
                TokenIssuer::from_secret(secret, self.algorithm).map_err(|e| Failure::Usage(e.into()))
            }
            Some(_) => Err(Failure::Usage(anyhow!(
                "the settings name a public key, and only the private one signs: name it with --key-file"
            ))),
            None => Err(Failure::Usage(anyhow!(
                "no key to sign with: set auth.secret_key or auth.secret_key_file, or name a private key with --key-file"
            ))),
        }
    }

    fn claims(&self, auth: &AuthSettings) -> TokenClaims {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut claims = TokenClaims::new(self.user.clone(), now, now.saturating_add(self.ttl.as_secs()));
        claims.username = self.username.clone();
        claims.user_type = self.user_type;
        claims.permissions = self.permissions.clone();
        claims.issuer = Some(auth.issuer.clone()).filter(|issuer| !issuer.is_empty());
        claims.audience = self.audience.clone().or_else(|| auth.audience.clone());
        claims.token_id = self.jti.clone();
        claims
    }

    /// Says so if a hub with these settings would refuse the token: signed for another key, or another audience.
    fn warn(&self, key: Option<JwtConfig>, token: &str) -> Result<(), Failure> {
        // What a key set holds is for the provider to say, who need not be there now.
        let Some(key) = key.filter(|key| !matches!(key.key, JwtKey::KeySet { .. })) else { return Ok(()) };
        if let Err(problem) = check(key, token)? {
            eprintln!("wsc: a hub with these settings refuses it: {problem}");
        }
        Ok(())
    }
}

impl CheckTokenArgs {
    /// Prints whom the token speaks for, as JSON.
    pub(crate) fn run(self) -> Result<(), Failure> {
        let key = key(&self.settings.load()?)?.ok_or_else(|| {
            Failure::Usage(anyhow!(
                "no key to check tokens with: set auth.secret_key, auth.public_key, one of their files, or auth.jwks_url"
            ))
        })?;
        let token = match self.token {
            Some(token) => token,
            None => {
                let mut text = String::new();
                // A little more than the longest token, so that a longer one is seen to be one.
                let limit = 2 * MAX_TOKEN_LEN as u64;
                io::stdin().take(limit).read_to_string(&mut text).context("cannot read standard input")?;
                text
            }
        };
        match check(key, token.trim())? {
            Ok(identity) => say(&format!("{:#}\n", shown(&identity))),
            Err(problem) => Err(anyhow!("the token is not accepted: {problem}").into()),
        }
    }
}

impl SettingsArgs {
    fn load(&self) -> Result<AuthSettings, Failure> {
        let source = Source::locate(self.config.clone());
        let settings = config::load(&source, self.profile.as_deref(), Strictness::Strict, config::environment())?;
        Ok(settings.auth)
    }
}

/// The key in the settings, whether or not authentication is on.
fn key(auth: &AuthSettings) -> Result<Option<JwtConfig>, Failure> {
    jwt_config(auth).map_err(|e| Failure::Usage(e.into()))
}

fn check(key: JwtConfig, token: &str) -> Result<Result<Identity, TokenProblem>, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start the runtime")?;
    runtime.block_on(async {
        let hub = JwtAuthenticator::new(key).map_err(|e| Failure::Usage(e.into()))?;
        Ok(hub.check(token).await)
    })
}

fn shown(identity: &Identity) -> serde_json::Value {
    json!({
        "user_id": identity.user_id.as_str(),
        "username": identity.username,
        "user_type": identity.user_type.as_str(),
        "permissions": identity.permissions,
        "issued_at": identity.issued_at,
        "expires_at": identity.expires_at,
        "jti": identity.token_id,
    })
}

fn permissions_in_words(permissions: &[String]) -> String {
    match permissions {
        [] => "it grants nothing".to_owned(),
        some => format!("it grants {}", some.join(", ")),
    }
}

fn user_id(text: &str) -> Result<Id, String> {
    Id::new(text).map_err(|e| e.to_string())
}

fn permission(text: &str) -> Result<String, String> {
    Permissions::parse([text]).map(|_| text.to_owned()).map_err(|e| e.to_string())
}

fn ttl(text: &str) -> Result<Duration, String> {
    let ttl = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => config::parse_duration(text).map_err(|e| e.to_string())?,
    };
    if ttl < Duration::from_secs(1) {
        return Err("a token is valid for a second at least".to_owned());
    }
    Ok(ttl)
}
