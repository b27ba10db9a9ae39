#!/bin/sh
# Makes a role and a database for Prefect and for MLflow; run once by the postgres image, on an
# empty data folder. Neither role may touch the other's database.
set -eu
for name in prefect mlflow; do
  password=$(cat "${SECRETS_FOLDER:-/run/secrets}/${name}_database")
  psql --quiet --no-psqlrc --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres \
    --set name="$name" --set password="$password" <<'SQL'
CREATE ROLE :"name" LOGIN PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name";
REVOKE CONNECT ON DATABASE :"name" FROM PUBLIC;
SQL
done
