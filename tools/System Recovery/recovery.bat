@echo off
rem Restores the server from one archive: asks for its path, and ends with exactly
rem
rem     Restore successfully
rem
rem Usage: recovery.bat [ARCHIVE] [options of deviceon-backup restore]
rem
rem Without a configuration (DEVICEON_BACKUP_CONFIG) set PGHOST PGPORT PGUSER PGPASSWORD as for psql, and
rem DEVICEON_BACKUP_SERVER_VERSION. The exit code is that of "deviceon-backup restore" (docs\CLI.md).
setlocal DisableDelayedExpansion

set "archive="
set "options="
set "first=%~1"
if not defined first goto explain
if "%first:~0,1%"=="-" goto options
set "archive=%~1"
shift /1

:options
if "%~1"=="" goto explain
set options=%options% %1
shift /1
goto options

:explain
echo System Recovery 1>&2
echo. 1>&2
echo   1. The archive's key is asked of this machine's TPM, and the archive's version compared with the server's. 1>&2
echo   2. Databases and configuration are restored beside what is there now, every byte authenticated and compared. 1>&2
echo   3. When all of it is good, they are exchanged. Until then nothing that is live is changed. 1>&2
echo   4. The state of before is kept until "deviceon-backup commit"; "deviceon-backup rollback" returns to it. 1>&2
echo. 1>&2

if not defined archive set /p "archive=Path of the archive: "
if not defined archive (
    echo error: no path was given 1>&2
    exit /b 2
)
set "archive=%archive:"=%"
if not exist "%archive%" (
    echo error: there is no file "%archive%" 1>&2
    echo   what to do: Check the path; is the disk or share connected? 1>&2
    exit /b 4
)
for %%F in ("%archive%") do set "archive=%%~fF"

where deviceon-backup >nul 2>&1
if not errorlevel 1 (
    deviceon-backup restore --yes%options% -- "%archive%"
    goto done
)
if exist "%~dp0..\..\.venv\Scripts\deviceon-backup.exe" (
    "%~dp0..\..\.venv\Scripts\deviceon-backup.exe" restore --yes%options% -- "%archive%"
    goto done
)
set "PYTHONPATH=%~dp0..\..;%PYTHONPATH%"
py -m service.cli restore --yes%options% -- "%archive%"

:done
exit /b %errorlevel%
