"""What the system catalogs say of a database, by name: evidence that does not come from pg_dump."""

from __future__ import annotations

import json

from demo.postgresql_server import PostgresqlServer

_USER = "n.nspname !~ '^(pg_catalog|information_schema|pg_toast|pg_temp.*|pg_toast_temp.*)$'"
_ACL = "ARRAY(SELECT unnest({})::text ORDER BY 1)"

# Everything that has an address: the name of a dropped or renamed one would be missing.
_CLASSES = (
    "pg_am", "pg_amop", "pg_amproc", "pg_cast", "pg_class", "pg_collation", "pg_constraint", "pg_conversion",
    "pg_default_acl", "pg_event_trigger", "pg_extension", "pg_foreign_data_wrapper", "pg_foreign_server", "pg_language",
    "pg_namespace", "pg_opclass", "pg_operator", "pg_opfamily", "pg_policy", "pg_proc",
    "pg_publication", "pg_publication_namespace", "pg_publication_rel", "pg_rewrite", "pg_statistic_ext",
    "pg_transform",
    "pg_trigger", "pg_ts_config", "pg_ts_dict", "pg_ts_parser", "pg_ts_template", "pg_type", "pg_user_mapping",
)  # fmt: skip
_OBJECTS = " UNION ALL ".join(
    f"""SELECT '{name} ' || o.identity,
               (SELECT string_agg(description, '|') FROM pg_description
                WHERE objoid = c.oid AND classoid = '{name}'::regclass AND objsubid = 0)
        FROM {name} AS c, LATERAL pg_identify_object('{name}'::regclass, c.oid, 0) AS o
        WHERE o.identity !~ '^(pg_toast|"(RI|Unique)_ConstraintTrigger_)'"""
    for name in _CLASSES
)
_QUERIES = {
    "object": f"SELECT k, coalesce(v, '') FROM ({_OBJECTS}) AS x(k, v)",
    "relation": f"""
        SELECT c.oid::regclass::text, jsonb_build_object('kind', relkind, 'owner', relowner::regrole::text,
            'persistence', relpersistence, 'replident', relreplident, 'rls', relrowsecurity, 'forced',
                relforcerowsecurity,
            'filled', relispopulated, 'options', reloptions, 'am', (SELECT amname FROM pg_am a WHERE a.oid = relam),
            'bound', pg_get_expr(relpartbound, c.oid), 'type', reloftype::regtype::text, 'acl', {_ACL.format("relacl")},
            'key', CASE WHEN relkind = 'p' THEN pg_get_partkeydef(c.oid) END,
            'parents', ARRAY(SELECT inhparent::regclass::text FROM pg_inherits WHERE inhrelid = c.oid
                ORDER BY inhseqno),
            'toast', (SELECT reloptions FROM pg_class t WHERE t.oid = c.reltoastrelid))::text
        FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE {_USER}""",
    "columns of": f"""
        SELECT a.attrelid::regclass::text, jsonb_agg(jsonb_build_object('name', attname,
            'type', format_type(atttypid, atttypmod), 'filled', attnotnull, 'default',
                nullif(regexp_replace(pg_get_expr(adbin, adrelid), '^NULL::.*', ''), ''),
            'identity', attidentity, 'generated', attgenerated, 'storage', attstorage, 'compression', attcompression,
            'target', attstattarget, 'collation', attcollation::regcollation::text, 'options', attoptions,
            'fdw', attfdwoptions, 'local', attislocal, 'inherited', attinhcount, 'acl', {_ACL.format("attacl")},
            'comment', col_description(attrelid, attnum)) ORDER BY attnum)::text
        FROM pg_attribute a JOIN pg_class c ON c.oid = attrelid JOIN pg_namespace n ON n.oid = relnamespace
        LEFT JOIN pg_attrdef d ON adrelid = attrelid AND adnum = attnum
        WHERE {_USER} AND attnum > 0 AND NOT attisdropped GROUP BY 1""",
    "index": f"""
        SELECT c.oid::regclass::text, concat_ws(', ', pg_get_indexdef(c.oid), indisunique, indisprimary, indisclustered,
            indisvalid, indisreplident, indimmediate)
        FROM pg_index i JOIN pg_class c ON c.oid = indexrelid JOIN pg_namespace n ON n.oid = relnamespace
            WHERE {_USER}""",
    "constraint": f"""
        SELECT concat_ws(' of ', quote_ident(conname), nullif(conrelid, 0)::regclass, nullif(contypid, 0)::regtype,
                         nullif(confrelid, 0)::regclass),
            concat_ws(', ', pg_get_constraintdef(k.oid), convalidated, conislocal, coninhcount, conparentid <> 0,
                      contype = 'c' AND connoinherit)
        FROM pg_constraint k JOIN pg_namespace n ON n.oid = connamespace WHERE {_USER}""",
    "trigger": """
        SELECT concat_ws(' of ', quote_ident(CASE WHEN tgisinternal THEN tgfoid::regproc::text ELSE tgname END),
                         tgrelid::regclass, tgtype, tgconstrrelid::regclass),
            concat_ws(', ', tgenabled, CASE WHEN tgisinternal THEN '' ELSE pg_get_triggerdef(oid) END, tgparentid <> 0)
        FROM pg_trigger""",
    "rule": "SELECT concat_ws(' of ', rulename, ev_class::regclass), concat(ev_enabled, pg_get_ruledef(oid)) "
    "FROM pg_rewrite "
    "WHERE oid >= 16384",
    "function": f"""
        SELECT p.oid::regprocedure::text, (to_jsonb(p) - '{{oid,pronamespace,proowner,prolang,provariadic,prosupport,
            prorettype,proargtypes,proallargtypes,protrftypes,proargdefaults,prosqlbody,proacl}}'::text[]
            || jsonb_build_object('owner', proowner::regrole::text, 'acl', {_ACL.format("proacl")},
               'definition', CASE WHEN prokind <> 'a' THEN pg_get_functiondef(p.oid) END))::text
        FROM pg_proc p JOIN pg_namespace n ON n.oid = pronamespace WHERE {_USER}""",
    "type": f"""
        SELECT t.oid::regtype::text, concat_ws(', ', typowner::regrole, typnotnull, typdefault,
            typcollation::regcollation,
            typlen, typbyval, typcategory, typispreferred, typdelim, typalign, typstorage, typisdefined,
            {_ACL.format("typacl")},
            (SELECT array_agg(enumlabel ORDER BY enumsortorder) FROM pg_enum WHERE enumtypid = t.oid),
            (SELECT concat_ws(' ', rngsubtype::regtype, rngmultitypid::regtype, rngcollation::regcollation,
                rngcanonical,
                              rngsubdiff) FROM pg_range WHERE rngtypid = t.oid))
        FROM pg_type t JOIN pg_namespace n ON n.oid = typnamespace WHERE {_USER}""",
    "sequence": f"""
        SELECT c.oid::regclass::text, concat_ws(', ', (to_jsonb(s) - '{{seqrelid,seqtypid}}'::text[]),
            seqtypid::regtype,
            (SELECT concat(d.refobjid::regclass, '.', d.refobjsubid > 0, d.deptype) FROM pg_depend d
             WHERE d.objid = c.oid AND d.classid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')))
        FROM pg_sequence s JOIN pg_class c ON c.oid = seqrelid JOIN pg_namespace n ON n.oid = relnamespace
            WHERE {_USER}""",
    "schema": """
        SELECT nspname::text, concat(nspowner::regrole, ARRAY(
            SELECT unnest(coalesce(nspacl, acldefault('n', nspowner)))::text ORDER BY 1))
        FROM pg_namespace WHERE nspname !~ '^pg_(temp|toast)'""",
    "rights on system objects": f"""
        SELECT oid::regprocedure::text, {_ACL.format("proacl")}::text FROM pg_proc WHERE oid < 16384
            AND proacl IS NOT NULL
        UNION ALL SELECT attrelid::regclass || '.' || attname, {_ACL.format("attacl")}::text
            FROM pg_attribute WHERE attrelid < 16384 AND attacl IS NOT NULL
        UNION ALL SELECT oid::regclass::text, {_ACL.format("relacl")}::text FROM pg_class WHERE oid < 16384
        UNION ALL SELECT oid::regtype::text, {_ACL.format("typacl")}::text FROM pg_type WHERE oid < 16384
        UNION ALL SELECT lanname, concat(lanowner::regrole, {_ACL.format("lanacl")}) FROM pg_language""",
    "default privileges": f"""
        SELECT concat_ws(' ', defaclrole::regrole, nullif(defaclnamespace, 0)::regnamespace, defaclobjtype),
               {_ACL.format("defaclacl")}::text FROM pg_default_acl""",
    "operator": f"""
        SELECT o.oid::regoperator::text, concat_ws(', ', oprowner::regrole, oprcanmerge, oprcanhash,
            oprcom::regoperator,
               oprnegate::regoperator, oprcode, oprrest, oprjoin)
        FROM pg_operator o JOIN pg_namespace n ON n.oid = oprnamespace WHERE {_USER}""",
    "aggregate": f"""
        SELECT aggfnoid::regprocedure::text,
            (to_jsonb(a) - '{{aggfnoid,aggsortop,aggtranstype,aggmtranstype}}'::text[])::text
        FROM pg_aggregate a JOIN pg_proc p ON p.oid = aggfnoid JOIN pg_namespace n ON n.oid = pronamespace
            WHERE {_USER}""",
    "policy": """
        SELECT polname || ' of ' || polrelid::regclass, concat_ws(', ', polcmd, polpermissive,
               ARRAY(SELECT r::regrole::text FROM unnest(polroles) r ORDER BY 1), pg_get_expr(polqual, polrelid),
               pg_get_expr(polwithcheck, polrelid)) FROM pg_policy""",
    "event trigger": "SELECT evtname::text, concat_ws(', ', evtevent, evtowner::regrole, evtfoid::regproc, "
    "evtenabled, evttags) "
    "FROM pg_event_trigger",
    "publication": """
        SELECT pubname::text, concat_ws(', ', pubowner::regrole, to_jsonb(p) - 'oid' - 'pubowner',
            (SELECT jsonb_agg(to_jsonb(t) ORDER BY t::text) FROM pg_publication_tables t WHERE t.pubname = p.pubname))
        FROM pg_publication p""",
    "foreign": f"""
        SELECT srvname::text, concat_ws(', ', srvowner::regrole, srvtype, srvversion,
            ARRAY(SELECT unnest(srvoptions) ORDER BY 1), {_ACL.format("srvacl")},
            (SELECT jsonb_agg(jsonb_build_array(umuser::regrole, ARRAY(SELECT unnest(umoptions) ORDER BY 1))
                ORDER BY umuser::regrole::text)
             FROM pg_user_mapping WHERE umserver = s.oid),
            (SELECT concat(fdwname, fdwowner::regrole, fdwoptions, {_ACL.format("fdwacl")})
                FROM pg_foreign_data_wrapper w
             WHERE w.oid = srvfdw))
        FROM pg_foreign_server s""",
    "statistics": "SELECT stxname || stxrelid::regclass::text, concat_ws(', ', stxowner::regrole, "
    "stxstattarget, stxkind, "
    "pg_get_statisticsobjdef(oid)) FROM pg_statistic_ext",
    "extension": "SELECT extname::text, concat(extowner::regrole, ' ', extnamespace::regnamespace, extversion) "
    "FROM pg_extension",
    "text search": f"""
        SELECT m.mapcfg::regconfig || ' ' || m.maptokentype || ' ' || m.mapseqno, m.mapdict::regdictionary::text
        FROM pg_ts_config_map m WHERE m.mapcfg >= 16384
        UNION ALL SELECT d.oid::regdictionary::text, concat_ws(', ', dictowner::regrole, dictinitoption)
        FROM pg_ts_dict d JOIN pg_namespace n ON n.oid = dictnamespace WHERE {_USER}""",
    "collation": f"""
        SELECT c.oid::regcollation::text, concat_ws(', ', collowner::regrole, collprovider,
            collisdeterministic, collcollate,
            collctype, colliculocale) FROM pg_collation c JOIN pg_namespace n ON n.oid = collnamespace WHERE {_USER}""",
}
_SESSION = "SET search_path = ''; SET quote_all_identifiers = off; SET statement_timeout = 0; SET role = 'none'"


async def catalogs(server: PostgresqlServer, database: str) -> dict[str, str]:
    """Return what there is -> what it is like."""
    async with server.connected(database) as connection:
        await connection.execute(_SESSION)
        found: dict[str, list[str]] = {}
        for what, query in _QUERIES.items():
            for name, told in await connection.fetch(query):
                found.setdefault(f"{what} {name}", []).append(told or "")
    return {name: json.dumps(sorted(told)) for name, told in found.items()}
