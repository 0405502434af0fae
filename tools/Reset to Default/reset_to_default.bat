@echo off
rem Returns the server to its baseline and keeps the installation's settings; ends with exactly
rem
rem     Reset successfully
rem
rem Usage: reset_to_default.bat [options of "deviceon-backup reset-to-default"]
rem
rem It runs the service's own program, in this order: in the container that DEVICEON_BACKUP_CONTAINER names
rem (docker exec; paths are then the container's), as deviceon-backup.exe in PATH or in the .venv of this project,
rem or from this project's source with Python. Today that program needs Linux: on Windows use the container, or
rem run reset_to_default.sh in WSL. docs\RECOVERY.md is the whole story; the exit code is explained in docs\CLI.md.
setlocal DisableDelayedExpansion
rem No command that takes arguments stands in a block: a path with a closing bracket in it would end the block.

if not defined DEVICEON_BACKUP_CONTAINER goto program
docker exec -it "%DEVICEON_BACKUP_CONTAINER%" deviceon-backup reset-to-default %*
exit /b %errorlevel%

:program
set "program="
for %%P in (deviceon-backup.exe) do set "program=%%~$PATH:P"
if not defined program if exist "%~dp0..\..\.venv\Scripts\deviceon-backup.exe" set "program=%~dp0..\..\.venv\Scripts\deviceon-backup.exe"
if not defined program goto source
"%program%" reset-to-default %*
exit /b %errorlevel%

:source
if not exist "%~dp0..\..\service\cli\app.py" goto no_source
set "python="
for %%P in (py.exe python.exe) do if not defined python set "python=%%~$PATH:P"
if not defined python goto no_python
set "PYTHONPATH=%~dp0..\..;%PYTHONPATH%"
"%python%" -c "import fcntl, click, pydantic" >nul 2>&1
if errorlevel 1 goto wrong_python
"%python%" -m service.cli reset-to-default %*
exit /b %errorlevel%

:no_source
echo error: deviceon-backup is not installed, and its source is not beside this script 1>&2
echo   what to do: Copy the whole project here, not only its tools; or name the service's container: 1>&2
echo               set DEVICEON_BACKUP_CONTAINER=its name 1>&2
exit /b 1

:no_python
echo error: neither deviceon-backup nor Python is installed 1>&2
echo   what to do: Name the service's container: set DEVICEON_BACKUP_CONTAINER=its name 1>&2
echo               or run reset_to_default.sh in WSL 1>&2
exit /b 1

:wrong_python
echo error: "%python%" cannot run deviceon-backup on this system 1>&2
echo   what to do: Name the service's container: set DEVICEON_BACKUP_CONTAINER=its name 1>&2
echo               or run reset_to_default.sh in WSL 1>&2
exit /b 1
