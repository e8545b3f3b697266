//! The section `<follow>`: which storage is a copy of which one of another server.

use super::schema::Items;
use super::values::{addresses, storage_name};
use super::zconfig::Section;
use super::{Config, ConfigError, FollowConfig, Problem, StorageKind, Surroundings};

/// Fills in what a section says. It has no name of its own: ZConfig has each name once in a file,
/// and that of the storage is taken.
pub(super) fn fill(
    config: &mut Config,
    section: Section,
    around: &dyn Surroundings,
) -> Result<(), ConfigError> {
    let place = section.place.clone();
    if section.name.is_some() {
        let why =
            "<follow> has no name: say storage NAME in it, and into NAME if it is another here";
        return Err(place.refuse(Problem::Unsupported(why)));
    }
    let mut items = Items::new(section)?;
    let ssl = items.take_ssl(around)?;
    let servers = items.required("server", addresses)?;
    let source = items.optional("storage", storage_name)?;
    let source = source.unwrap_or_else(|| "1".to_owned());
    let into = items.optional("into", storage_name)?;
    let storage = into.unwrap_or_else(|| source.clone());
    items.finish()?;
    if config.follow.iter().any(|it| it.storage == storage) {
        let why = "another <follow> copies into the same storage";
        return Err(place.refuse(Problem::Unsupported(why)));
    }
    config.follow.push(FollowConfig {
        place,
        storage,
        servers,
        source,
        ssl,
    });
    Ok(())
}

/// Lets nobody write where there is a `<follow>`: it would be in the way of what comes. `read_only`
/// is what `<zeo>` says, if it says it.
pub(super) fn close(config: &mut Config, read_only: Option<bool>) -> Result<(), ConfigError> {
    let Some(follow) = config.follow.first() else {
        return Ok(());
    };
    if read_only == Some(false) {
        let why = "with a <follow> nobody else may write: without read-only false, please";
        return Err(follow.place.refuse(Problem::Unsupported(why)));
    }
    config.read_only = true;
    Ok(())
}

/// Checks it against the rest, when the command line has had its word.
pub(super) fn check(config: &Config) -> Result<(), ConfigError> {
    for follow in &config.follow {
        let refuse = |why| Err(follow.place.refuse(Problem::Unsupported(why)));
        if config.standby.is_some() {
            return refuse(
                "a node of a cluster follows nobody but its primary: <follow> is for the \
                           time before there is a <standby>",
            );
        }
        let storage = config.storages.iter().find(|it| it.name == follow.storage);
        match storage.map(|it| &it.kind) {
            None => {
                return refuse("<follow>: there is no storage of this name here (say into NAME)");
            }
            Some(StorageKind::File(file)) if file.read_only => {
                return refuse("a storage that follows is written to: without read-only, please");
            }
            Some(StorageKind::File(file)) if file.create => {
                return refuse("create would begin anew at each start: without it, please");
            }
            Some(_) => {}
        }
        if follow
            .servers
            .iter()
            .any(|it| config.addresses.contains(it))
        {
            return refuse("the server that is followed has the address of this one");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::Files;
    use super::super::{Args, read};
    use super::*;

    const REST: &str =
        "<zeo>\naddress 8200\n</zeo>\n<filestorage main>\npath A.fs\n</filestorage>\n";

    fn config(text: &str) -> Result<Config, String> {
        let files = Files::new(&[("zeo.conf", text)]);
        let args = Args {
            configure: Some("zeo.conf".into()),
            ..Args::default()
        };
        read(&args, &files).map_err(|error| error.to_string())
    }

    #[test]
    fn a_storage_follows_one_of_the_same_name_or_of_another() {
        let same = "<follow>\nserver old:8100 old:8109\nstorage main\n</follow>";
        let same = config(&format!("{REST}{same}")).unwrap();
        assert_eq!(same.follow[0].storage, "main");
        assert_eq!(same.follow[0].source, "main");
        let servers: Vec<_> = same.follow[0]
            .servers
            .iter()
            .map(|it| it.to_string())
            .collect();
        assert_eq!(servers, ["old:8100", "old:8109"]);
        assert!(same.read_only);
        let other = "<follow>\nserver old:8100\ninto main\n</follow>";
        let other = config(&format!("{REST}{other}")).unwrap();
        assert_eq!(other.follow[0].storage, "main");
        assert_eq!(other.follow[0].source, "1");
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let follow = "<follow>\nserver old:8100\nstorage main\n</follow>\n";
        let refused = |text: &str| config(text).unwrap_err();
        let none = refused(&format!("{REST}<follow>\nserver old:8100\n</follow>"));
        assert!(
            none.starts_with("zeo.conf:7: <follow>: there is no"),
            "{none}"
        );
        let twice = refused(&format!("{REST}{follow}{follow}"));
        assert!(twice.contains("another <follow> copies"), "{twice}");
        let named = refused(&format!("{REST}<follow x>\nserver old:8100\n</follow>"));
        assert!(named.contains("<follow> has no name"), "{named}");
        let read_only = REST.replace("path A.fs", "path A.fs\nread-only true");
        assert!(refused(&format!("{read_only}{follow}")).contains("without read-only"));
        // In whichever order.
        let writable = REST.replace("8200", "8200\nread-only false");
        for text in [format!("{writable}{follow}"), format!("{follow}{writable}")] {
            let why = refused(&text);
            assert!(why.contains("nobody else may write"), "{why}");
        }
        let closed = REST.replace("8200", "8200\nread-only true");
        for rest in [REST, &closed] {
            for text in [format!("{rest}{follow}"), format!("{follow}{rest}")] {
                assert!(config(&text).unwrap().read_only);
            }
        }
        let create = REST.replace("path A.fs", "path A.fs\ncreate true");
        assert!(refused(&format!("{create}{follow}")).contains("create would begin anew"));
        let own = follow.replace("old:8100", "8200");
        assert!(refused(&format!("{REST}{own}")).contains("the address of this one"));
        let nobody = refused(&format!("{REST}<follow>\nstorage main\n</follow>"));
        assert!(nobody.contains("<follow> needs a key 'server'"), "{nobody}");
    }
}
